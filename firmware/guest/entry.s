# From the PVH entry (32-bit protected mode, paging off) to Rust at CPL 3, in as few instructions at CPL 0 as it takes:
# on hosts with software paging each of them is emulated (0.5 us). Everything else is data the linker laid out.

.set USER_DATA, 0x2b
.set USER_CODE, 0x33
.set TSS, 0x38
.set IO_PORTS, 0x1000

.section .note.Xen, "a", @note
    .long 4, 8, 18                      # XEN_ELFNOTE_PHYS32_ENTRY (xen/include/public/elfnote.h)
    .asciz "Xen"
    .quad entry32

# The first 1 GiB in 2 MiB pages, user and writable; vm.rs fills the other three directories.
.section .page_tables, "aw"
.balign 4096
pml4:
    .quad pdpt + 7
    .fill 511, 8, 0
.global pdpt
pdpt:
    .quad directory0 + 7
    .fill 511, 8, 0
directory0:
    .set page, 0
    .rept 512
    .quad page * 0x200000 + 0x87
    .set page, page + 1
    .endr

.section .data.entry, "aw"
.balign 16
.global gdt
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff            # 0x08 CPL 0, 32-bit code
    .quad 0x00af9b000000ffff            # 0x10 CPL 0, 64-bit code
    .quad 0x00cf93000000ffff            # 0x18 CPL 0, data
    .quad 0
    .quad 0x00cff3000000ffff            # 0x28 CPL 3, data
    .quad 0x00affb000000ffff            # 0x30 CPL 3, 64-bit code
    .word tss_limit, tss_low            # 0x38 TSS; link.ld cuts its address into these fields
    .byte tss_middle, 0x89, 0, 0
    .quad 0
gdt_end:
.global gdt_pointer
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
    .long 0
.balign 8
.global idt_pointer
idt_pointer:
    .word 256 * 16 - 1
    .quad idt
.balign 8
user_frame:
    .quad user_entry, USER_CODE, 2, user_stack_end, USER_DATA
fault_frame:
    .quad fault_entry, USER_CODE, 2, user_stack_end, USER_DATA
ap_frame:
    .quad ap_user_entry, USER_CODE, 2
.global ap_stack
ap_stack:
    .quad 0, USER_DATA

# The I/O bitmap covers the ports below IO_PORTS with zeroes: open from CPL 3. A byte of ones ends it (SDM 1, 19.5.2).
.balign 16
.global tss
tss:
    .long 0
    .quad kernel_stack_end
    .fill 90, 1, 0
    .word bitmap - tss
bitmap:
    .fill IO_PORTS / 8, 1, 0
    .byte 0xff
.global tss_end
tss_end:

.section .bss.entry, "aw", @nobits
.balign 4
.global acknowledge
acknowledge:
    .skip 4
.global acknowledged
acknowledged:
    .skip 4
.global kernel_target
kernel_target:
    .skip 4
.balign 16
.global idt
idt:
    .skip 256 * 16
    .skip 4096
kernel_stack_end:
    .skip 131072
user_stack_end:

.section .text.entry, "ax"
.code32
.global entry32
entry32:
    lgdt gdt_pointer
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0x620, %eax                   # CR4: PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $0xc0000080, %ecx              # EFER.LME
    movl $0x100, %eax
    xorl %edx, %edx
    wrmsr
    movl $0x80000033, %eax              # CR0: PG, NE, ET, MP, PE
    movl %eax, %cr0
    ljmp $0x10, $entry64
.code64
entry64:
    movl $TSS, %eax
    ltr %ax
    lidt idt_pointer
    movl $user_frame, %esp
    iretq
user_entry:
    movl %ebx, %edi
    xorl %ebp, %ebp
    call main
    ud2

# Exceptions are told by Rust at CPL 3, on the program's own stack: nothing returns from them.
.balign 16
.global exception_stubs
exception_stubs:
    .set vector, 0
    .rept 32
    .balign 16
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
    pushq $0
    .endif
    pushq $vector
    jmp exception
    .set vector, vector + 1
    .endr
exception:
    popq %rdi
    popq %rsi
    popq %rdx
    movq 16(%rsp), %r8
    movq %cr2, %rcx
    movl $fault_frame, %esp
    iretq
fault_entry:
    xorl %ebp, %ebp
    call fault
    ud2

# Interrupts 0x30 to 0x3f are counted and acknowledged at the local APIC.
.balign 16
.global interrupt_stubs
interrupt_stubs:
    .set vector, 0
    .rept 16
    .balign 16
    pushq %rax
    movl $vector, %eax
    jmp interrupt
    .set vector, vector + 1
    .endr
interrupt:
    incl interrupts(, %rax, 4)
    movl acknowledge, %eax              # a virtio-mmio device: take back its (level) interrupt before the next
    testl %eax, %eax
    jz 1f
    pushq %rbx
    movl 0x60(%rax), %ebx
    movl %ebx, 0x64(%rax)
    orl %ebx, acknowledged
    popq %rbx
1:  movl $0xfee000b0, %eax              # end of interrupt (SDM 3, 11.8.5)
    movl $0, (%rax)
    popq %rax
.global spurious_stub
spurious_stub:
    iretq

# Rust asks for a function to be run with CPL 0 by its address in kernel_target and an ud2: software paging hosts turn
# `int n` of CPL 3 into an invalid opcode, so this is what all hosts have in common.
.global invalid_stub
invalid_stub:
    cmpl $0, kernel_target
    je exception_stubs + 6 * 16
    addq $2, (%rsp)
    movl kernel_target, %eax
    movl $0, kernel_target
    call *%rax
    iretq
.global kernel_hang
kernel_hang:
    cli
1:  hlt
    jmp 1b
.global kernel_wait
kernel_wait:
    sti
    hlt
    cli
    ret
.global kernel_sti
kernel_sti:
    orl $0x200, 24(%rsp)
    ret
.global kernel_cli
kernel_cli:
    andl $~0x200, 24(%rsp)
    ret
.global kernel_rdmsr
kernel_rdmsr:
    rdmsr
    ret
.global kernel_cpuid
kernel_cpuid:
    pushq %rbx
    movl %esi, %eax
    cpuid
    movl %ebx, %esi
    popq %rbx
    ret

# Application processors start here in real mode, copied to a page below 1 MiB: no address of its own.
.code16
.global trampoline
trampoline:
    cli
    lgdtl %cs:trampoline_gdt - trampoline
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x08, $ap32
.balign 8
trampoline_gdt:
    .word gdt_end - gdt - 1
    .long gdt
.global trampoline_end
trampoline_end:
.code32
ap32:
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0x620, %eax
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    movl $0x100, %eax
    xorl %edx, %edx
    wrmsr
    movl $0x80000033, %eax
    movl %eax, %cr0
    ljmp $0x10, $ap64
.code64
ap64:
    lidt idt_pointer
    movl $ap_frame, %esp
    iretq
ap_user_entry:
    xorl %ebp, %ebp
    call ap_main
    ud2
