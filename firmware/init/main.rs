//! PID 1 of a vsc guest: hello-world stage.
#![no_std]
#![no_main]

use core::arch::{asm, naked_asm};

#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    naked_asm!("xor ebp, ebp", "mov rdi, rsp", "and rsp, -16", "call {main}", "ud2", main = sym main)
}

extern "C" fn main(_stack: *const usize) -> ! {
    let text = b"vsc init\n";
    // SAFETY: write(2) and exit_group(2) with valid arguments.
    unsafe {
        asm!("syscall", inout("rax") 1_usize => _, in("rdi") 1, in("rsi") text.as_ptr(), in("rdx") text.len(),
            out("rcx") _, out("r11") _);
        asm!("syscall", in("rax") 231, in("rdi") 0, options(noreturn));
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
