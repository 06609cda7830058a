//! `krun-run KERNEL INITRD CMDLINE MIB [DISK]`: a machine under libkrun with one processor, the serial line on stdio, and
//! what libkrun adds unasked (virtio console, vsock) left away, so that it can be measured beside `vsc-run`.

use std::ffi::CString;
use std::process::ExitCode;
use std::ptr::null;

const KERNEL_FORMAT_ELF: u32 = 1; // libkrun.h: KRUN_KERNEL_FORMAT_ELF
const DISK_FORMAT_RAW: u32 = 0; // libkrun.h: KRUN_DISK_FORMAT_RAW

fn check(what: &str, status: i32) -> Result<u32, String> {
    u32::try_from(status).map_err(|_| format!("{what}: {}", std::io::Error::from_raw_os_error(-status)))
}

fn run(arguments: &[String]) -> Result<(), String> {
    let [kernel, initrd, cmdline, memory, disk @ ..] = arguments else {
        return Err("usage: krun-run KERNEL INITRD CMDLINE MIB [DISK]".into());
    };
    let c = |text: &String| CString::new(text.as_str()).map_err(|error| error.to_string());
    let (kernel, initrd, cmdline) = (c(kernel)?, c(initrd)?, c(cmdline)?);
    let memory = memory.parse().map_err(|error| format!("{memory}: {error}"))?;
    let context = check("krun_create_ctx", krun::krun_create_ctx())?;
    check("krun_set_vm_config", krun::krun_set_vm_config(context, 1, memory))?;
    let initrd_path = if initrd.is_empty() { null() } else { initrd.as_ptr() };
    // SAFETY: the strings end with NUL and outlive the calls; libkrun copies them.
    unsafe {
        check(
            "krun_set_kernel",
            krun::krun_set_kernel(context, kernel.as_ptr(), KERNEL_FORMAT_ELF, initrd_path, cmdline.as_ptr()),
        )?;
        check("krun_disable_implicit_console", krun::krun_disable_implicit_console(context))?;
        check("krun_disable_implicit_vsock", krun::krun_disable_implicit_vsock(context))?;
        check("krun_add_serial_console_default", krun::krun_add_serial_console_default(context, 0, 1))?;
        if let Some(disk) = disk.first() {
            let disk = c(disk)?;
            check(
                "krun_add_disk2",
                krun::krun_add_disk2(context, c"vda".as_ptr(), disk.as_ptr(), DISK_FORMAT_RAW, false),
            )?;
        }
    }
    // Ends the process with the guest's status.
    check("krun_start_enter", krun::krun_start_enter(context)).map(drop)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("krun-run: {error}");
            ExitCode::from(125)
        }
    }
}
