/* SPDX-License-Identifier: Apache-2.0
 * The smallest guests: a PVH ELF that writes "@F\n" to COM1 and resets the machine.
 *   tiny0: from 32-bit CPL 0, as PVH enters it
 *   tiny3 (-DRING3): from 64-bit CPL 3 through a TSS whose I/O bitmap allows everything
 * Reset, in this order: reset control register 0xcf9, i8042, triple fault (for a monitor that has neither). */
#define PVH_ENTRY 18 /* XEN_ELFNOTE_PHYS32_ENTRY, xen/interface/elfnote.h */

    .section .note, "a", @note
    .long 4, 4, PVH_ENTRY
    .asciz "Xen"
    .long entry

.macro say_and_reset
    mov $0x3f8, %edx
    mov $'@', %al
    out %al, %dx
    mov $'F', %al
    out %al, %dx
    mov $'\n', %al
    out %al, %dx
    mov $0xcf9, %edx
    mov $6, %al
    out %al, %dx
    mov $0xfe, %al
    out %al, $0x64
    mov $200, %ecx
1:  pause
    dec %ecx
    jnz 1b
    ud2
2:  jmp 2b
.endm

    .text
    .code32
    .globl entry
entry:
    cli
    lidt no_idt
#ifndef RING3
    mov $stack_top, %esp
    say_and_reset
#else
    /* Page tables: identity, the first 2 MiB, user and writable (7), page size bit in the last (0x87). */
    movl $pdpt + 7, pml4
    movl $pd + 7, pdpt
    movl $0x87, pd
    /* The TSS descriptor's base is cut in pieces. */
    mov $tss, %eax
    mov %ax, gdt_tss + 2
    shr $16, %eax
    mov %al, gdt_tss + 4
    mov %ah, gdt_tss + 7
    movw $104, tss + 102 /* offset of the I/O bitmap */
    movb $0xff, tss + 104 + 8192
    mov $pml4, %eax
    mov %eax, %cr3
    mov %cr4, %eax
    or $0x20, %eax /* PAE */
    mov %eax, %cr4
    mov $0xc0000080, %ecx /* EFER.LME */
    rdmsr
    or $0x100, %eax
    wrmsr
    lgdt gdt_pointer
    mov %cr0, %eax
    or $0x80000001, %eax
    mov %eax, %cr0
    ljmp $8, $long_mode
    .code64
long_mode:
    mov $0x28, %eax
    ltr %ax
    pushq $0x1b
    pushq $stack_top
    pushq $2
    pushq $0x23
    pushq $ring3
    iretq
ring3:
    say_and_reset
    .code32
#endif

    .data
    .balign 8
no_idt:
    .word 0
    .long 0, 0
#ifdef RING3
    .balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff /* 0x08 code, CPL 0, 64 bit */
    .quad 0x00cf93000000ffff /* 0x10 data */
    .quad 0x00cff3000000ffff /* 0x18 data, CPL 3 */
    .quad 0x00affb000000ffff /* 0x20 code, CPL 3, 64 bit */
gdt_tss:
    .word 104 + 8192, 0
    .byte 0, 0x89, 0, 0
    .quad 0
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long gdt, 0
#endif

    .bss
    .balign 4096
#ifdef RING3
pml4: .skip 4096
pdpt: .skip 4096
pd: .skip 4096
tss: .skip 104 + 8192 + 1
#endif
    .balign 16
    .skip 4096
stack_top:
