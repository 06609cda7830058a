use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// A root directory of this test's own, gone with the value.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("vsc-hosts-{}-{number}", std::process::id()));
        fs::remove_dir_all(&path).ok();
        fs::create_dir_all(&path).unwrap();
        Place(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn variables(&self) -> Variables {
        Variables {
            home: Some("/home/u".into()),
            config_home: Some(self.0.join("config")),
            ..Variables::default()
        }
    }

    fn load(&self, file: Option<&Path>) -> Result<Hosts, Diagnostics> {
        let root = Root(self.0.clone());
        Hosts::load(file, SettingsFrom::Search(&root), &self.variables(), &root)
    }

    /// The list of this text.
    fn list(&self, text: &str) -> Result<Hosts, Diagnostics> {
        self.load(Some(&self.write("list.yaml", text)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

const TWO: &str = "\
# ours
sevhost:
  url: qemu+ssh://root@sev.example/system
  sev-cert: /certs/sev.pdh
localhost:
  url: qemu:///system
";

#[test]
fn without_a_list_there_is_this_host() {
    let place = Place::new();
    for (privileged, url) in [(true, "qemu:///system"), (false, "qemu:///session")] {
        let variables = Variables {
            privileged,
            ..place.variables()
        };
        let hosts = Hosts::load(
            None,
            SettingsFrom::Nowhere,
            &variables,
            &Root(place.0.clone()),
        )
        .unwrap();
        assert_eq!(hosts.list.len(), 1);
        let host = hosts.selected().unwrap();
        assert_eq!((host.name.as_str(), host.url().unwrap()), (LOCALHOST, url));
        assert_eq!(
            (&hosts.file, &host.certificate),
            (&None, &Certificate::None)
        );
    }
}

#[test]
fn a_list_is_found_where_virt_scenario_finds_it() {
    let place = Place::new();
    let found = |place: &Place| place.load(None).unwrap().file.unwrap();
    let etc = place.write("etc/virthosts.yaml", TWO);
    assert_eq!(found(&place), etc);
    let own = place.write("etc/virt-scenario/virthosts.yaml", TWO);
    assert_eq!(found(&place), own);
    let home = place.write("home/u/.local/virt-scenario/virthosts.yaml", TWO);
    assert_eq!(found(&place), home);
    // What the settings name comes before all of them, and an option before that.
    let named = place.write("named.yaml", TWO);
    let settings = format!("hypervisors:\n  - hvconf: {}\n", named.display());
    place.write("etc/virtscenario.yaml", &settings);
    assert_eq!(found(&place), named);
    assert_eq!(place.load(Some(&etc)).unwrap().file.unwrap(), etc);
    let root = Root(place.0.clone());
    let unset = Hosts::load(None, SettingsFrom::Nowhere, &place.variables(), &root).unwrap();
    assert_eq!(unset.file.unwrap(), home);
    // One that is named and not there is an error, not a reason for another one.
    fs::remove_file(&named).unwrap();
    let text = place.load(None).unwrap_err().render(false);
    assert!(
        text.contains("named.yaml cannot be read: there is no such file"),
        "{text}"
    );
}

#[test]
fn a_list_is_read_in_its_order_with_its_certificates() {
    let place = Place::new();
    let hosts = place.list(TWO).unwrap();
    assert!(hosts.messages.list.is_empty());
    let names: Vec<_> = hosts.list.iter().map(|h| h.name.as_str()).collect();
    assert_eq!(names, ["sevhost", "localhost"]);
    assert_eq!(
        hosts.get("sevhost").unwrap().url().unwrap(),
        "qemu+ssh://root@sev.example/system"
    );
    let certificate = |text: &str| place.list(text).unwrap().list[0].certificate.clone();
    let path = PathBuf::from("/certs/sev.pdh");
    assert_eq!(certificate(TWO), Certificate::Missing(path.clone()));
    place.write("certs/sev.pdh", "x");
    assert_eq!(certificate(TWO), Certificate::Present(path));
    assert_eq!(
        certificate("a: {url: \"qemu:///system\", sev-cert: /certs}"),
        Certificate::Missing("/certs".into())
    );
    let beside = place.0.join("x.pdh");
    assert_eq!(
        certificate("a: {url: \"qemu:///system\", sev-cert: x.pdh}"),
        Certificate::Missing(beside)
    );
    assert_eq!(
        certificate("a: {url: \"qemu:///system\", sev-cert: ~/x.pdh}"),
        Certificate::Missing("/home/u/x.pdh".into())
    );
}

#[test]
fn a_choice_is_kept_and_the_list_is_not_touched() {
    let place = Place::new();
    let file = place.write("list.yaml", TWO);
    let mut hosts = place.load(Some(&file)).unwrap();
    // `localhost` without a choice, wherever it stands; else the first.
    assert_eq!(hosts.selected().unwrap().name, LOCALHOST);
    assert_eq!(
        place
            .list("b: {url: xen:///}\na: {url: xen:///}\n")
            .unwrap()
            .selected()
            .unwrap()
            .name,
        "b"
    );
    place.write("list.yaml", TWO);
    assert_eq!(hosts.select("sevhost").unwrap().name, "sevhost");
    assert_eq!(
        place.load(Some(&file)).unwrap().selected().unwrap().name,
        "sevhost"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), TWO);
    let state = place.0.join("config/vsc/host");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&state), mode(state.parent().unwrap())),
        (0o600, 0o700)
    );
    assert_eq!(fs::read_dir(state.parent().unwrap()).unwrap().count(), 1);

    let wrong = hosts.select("sevhos").unwrap_err().to_string();
    assert!(wrong.contains("did you mean \"sevhost\"?"), "{wrong}");
    let wrong = hosts.get("zzzzzz").unwrap_err().to_string();
    assert!(
        wrong.contains("it has \"sevhost\", \"localhost\""),
        "{wrong}"
    );
    assert_eq!(hosts.selected().unwrap().name, "sevhost");

    // Another list without that name: no other host takes its place in silence.
    let other = place.list("localhost: {url: \"qemu:///system\"}").unwrap();
    let lost = other.selected().unwrap_err();
    assert!(
        matches!(&lost, HostsError::Lost { name, .. } if name == "sevhost"),
        "{lost}"
    );
    assert!(place.load(None).unwrap().selected().is_err());
}

#[test]
fn a_choice_that_cannot_be_read_or_kept_is_none() {
    let place = Place::new();
    place.write("config/vsc/host", "");
    assert_eq!(place.list(TWO).unwrap().selected().unwrap().name, LOCALHOST);
    place.write("config/vsc/host", &"x".repeat(5000));
    assert_eq!(place.list(TWO).unwrap().selected().unwrap().name, LOCALHOST);
    let mut hosts = Hosts::load(
        None,
        SettingsFrom::Nowhere,
        &Variables::default(),
        &Root(place.0.clone()),
    )
    .unwrap();
    assert!(matches!(hosts.select(LOCALHOST), Err(HostsError::NoHome)));
    // A directory in the place of the file.
    fs::remove_file(place.0.join("config/vsc/host")).unwrap();
    fs::create_dir_all(place.0.join("config/vsc/host/x")).unwrap();
    let mut hosts = place.list(TWO).unwrap();
    assert!(matches!(
        hosts.select(LOCALHOST),
        Err(HostsError::Write(..))
    ));
    assert_eq!(fs::read_dir(place.0.join("config/vsc")).unwrap().count(), 1);
}

#[test]
fn what_is_wrong_with_a_list_is_said_at_its_place() {
    let place = Place::new();
    let url = "{url: \"qemu:///system\"}";
    for (text, code, line, column) in [
        (String::new(), "E-HOSTS-EMPTY", 1, 1),
        ("# nothing\n".into(), "E-HOSTS-EMPTY", 1, 1),
        ("{}".into(), "E-HOSTS-EMPTY", 1, 1),
        ("- a\n".into(), "E-TYPE", 1, 1),
        ("localhost\n".into(), "E-TYPE", 1, 1),
        ("a: qemu:///system\n".into(), "E-TYPE", 1, 4),
        (
            format!("a: {url}\nb: {url}\na: {url}\n"),
            "E-DUPLICATE-KEY",
            3,
            1,
        ),
        ("a:\n  url:\n".into(), "E-TYPE", 2, 3),
        ("a:\n  url: [x]\n".into(), "E-TYPE", 2, 8),
        ("a:\n  url: qemu:/system\n".into(), "E-VALUE", 2, 8),
        ("a:\n  url: \"qemu:///a b\"\n".into(), "E-VALUE", 2, 8),
        ("a:\n  url: \"qemu:///\\n\"\n".into(), "E-VALUE", 2, 8),
        ("a:\n  url: \"\"\n".into(), "E-VALUE", 2, 8),
        ("a:\n  url: -c\n".into(), "E-VALUE", 2, 8),
        (format!("\"\": {url}\n"), "E-VALUE", 1, 1),
        ("a:\n  url: x\n  sev-cert:\n".into(), "E-TYPE", 3, 3),
        ("a:\n  url: x\n  sev-cert: ~u/x\n".into(), "E-VALUE", 3, 13),
        ("a: [\n".into(), "E-YAML", 1, 5),
    ] {
        let records = place.list(&text).unwrap_err().records();
        let place = records[0].place.as_ref().unwrap();
        let found = (records[0].code.as_str(), place.line, place.column);
        assert_eq!((found, records.len()), ((code, line, column), 1), "{text}");
    }
    for (text, code, line, column) in [
        ("a:\n", "W-HOSTS-URL", 1, 1),
        ("a: {}\n", "W-HOSTS-URL", 1, 1),
        ("a:\n  sev-cert: /x\n", "W-HOSTS-URL", 1, 1),
        ("a:\n  url: x\n  ulr: y\n", "W-HOSTS-UNKNOWN", 3, 3),
    ] {
        let hosts = place.list(text).unwrap();
        let records = hosts.messages.records();
        let place = records[0].place.as_ref().unwrap();
        assert_eq!(
            (records[0].code.as_str(), place.line, place.column),
            (code, line, column),
            "{text}"
        );
    }
    let hosts = place.list("a:\n").unwrap();
    assert!(matches!(
        hosts.selected().unwrap().url(),
        Err(HostsError::NoUrl(_))
    ));
}

#[test]
fn settings_that_cannot_be_read_are_reported() {
    let place = Place::new();
    fs::create_dir_all(place.0.join("etc/virtscenario.yaml")).unwrap();
    let hosts = place.load(None).unwrap();
    assert_eq!(hosts.messages.records()[0].code, "W-HOSTS");
    assert_eq!(hosts.list.len(), 1);
}
