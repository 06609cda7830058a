use super::*;

const CONSOLE: &str = "SeaBIOS says hello\r\n\
    vsc guest\r\n\
    info memory 65151 KiB in 2 ranges of 2\r\n\
    ok mem.map\r\n\
    ok blk0.read.plain 64 sectors\r\n\
    FAIL rtc no RTC: its registers read 0xff\r\n\
    skip smp no MADT\r\n\
    bench blk.seqread 2741 MB/s\r\n\
    end status=1 passed=2 failed=1 skipped=1\r\n";

#[test]
fn a_report_is_read_line_by_line() {
    let report = Report::parse(CONSOLE);
    assert!(report.greeted && !report.passed());
    assert_eq!(report.status, Some(1));
    assert_eq!(report.count(Kind::Ok), 2);
    assert_eq!(
        report.entries[1],
        Entry {
            kind: Kind::Ok,
            name: "mem.map".into(),
            text: String::new()
        }
    );
    assert_eq!(report.entries[3].text, "no RTC: its registers read 0xff");
    assert_eq!(report.bench("blk.seqread"), Some((2741, "MB/s")));
    assert_eq!(report.bench("blk.rand"), None);
}

#[test]
fn only_a_whole_report_without_failures_has_passed() {
    let good = "vsc guest\nok mem.map\nend status=0 passed=1 failed=0 skipped=0\n";
    assert!(Report::parse(good).passed());
    for bad in [
        "vsc guest\nok mem.map\n",
        "ok mem.map\nend status=0\n",
        "vsc guest\nend status=0 passed=0 failed=0 skipped=0\n",
        "vsc guest\nok mem.map\nCRASH exception 14\nend status=70\n",
        "vsc guest\nok mem.map\nend status=boom\n",
        "",
    ] {
        assert!(!Report::parse(bad).passed(), "{bad:?}");
    }
}

#[test]
fn the_json_line_is_json() {
    let console = "vsc guest\nok mem.map\njson {\"vsc_guest\":1,\"entries\":[{\"kind\":\"ok\",\"name\":\"mem.map\",\
        \"text\":\"\"}],\"truncated\":false,\"passed\":1,\"failed\":0,\"skipped\":0,\"status\":0}\nend status=0\n";
    let json: JsonReport = serde_json::from_str(json_line(console).expect("a line")).expect("JSON");
    assert_eq!(json.entries, Report::parse(console).entries);
    assert_eq!((json.passed, json.status), (1, 0));
    assert_eq!(json_line("vsc guest\n"), None);
}
