use super::*;

#[test]
fn devices_on_the_command_line_are_the_kernels_whatever_init_gets() {
    let device = MmioDevice {
        base: 0xd000_0000,
        len: 0x1000,
        gsi: 5,
        level: false,
    };
    let word = "virtio_mmio.device=0x1000@0xd0000000:5";
    let line = with_devices("console=hvc0 -- --for-init", &[device]).unwrap();
    let kernels: Vec<_> = cmdline::words(&line).map(|w| w.text).collect();
    assert_eq!(kernels, [word, "console=hvc0"]);
    assert!(line.ends_with(" -- --for-init"));
    assert_eq!(with_devices("quiet", &[]).unwrap(), "quiet");
}

#[test]
fn an_initrd_that_is_a_pipe_is_refused_at_once() {
    let fifo = std::env::temp_dir().join(format!("vsc-initrd-fifo-{}", std::process::id()));
    let status = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(status.unwrap().success());
    let (done, opened) = std::sync::mpsc::channel();
    let part = InitrdPart::File(fifo.clone());
    std::thread::spawn(move || done.send(Part::open(&part).is_err()));
    let refused = opened.recv_timeout(std::time::Duration::from_secs(60));
    assert_eq!(refused, Ok(true), "it must not wait for a writer");
    std::fs::remove_file(&fifo).unwrap();
}
