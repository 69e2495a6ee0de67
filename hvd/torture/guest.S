# The torture guest: attacks the places where record and replay may differ.
# See the package comment. Assembled without a linker: every address is a
# difference of two labels, so that no relocation is left.
#
#	as --64 -o guest.o guest.S && objcopy -O binary -j .text guest.o guest.bin
#
# Registers of the main line: rbp its digest, r12 the section's loop. Handlers
# keep a digest of their own in memory.

	.intel_syntax noprefix
	.text
	.code64

	.set	BASE, 0x100000
	.set	STACK, 0x190000
	.set	STACK_RING0, 0x1a0000
	.set	STACK_IST, 0x1b0000
	.set	STACK_USER, 0x1c0000
	.set	SOURCE, 0x200000	# 8 KiB
	.set	TARGET, 0x210000
	.set	RING, 0x230000		# descriptors, +1000h available, +2000h used, +3000h buffers
	.set	TABLES, 0x240000	# three pages for each of two windows
	.set	PAGE_A, 0x250000
	.set	PAGE_B, 0x260000
	.set	MADE, 0x270000		# code made at run time
	.set	PML4, 0x2000		# by Load
	.set	WINDOW, 0x8000000000	# PML4 entry 1
	.set	NOWHERE, 0x10000000000	# PML4 entry 2, never present
	.set	NET, 0xfe008000
	.set	NET_ISR, 0xc0a0
	.set	APIC, 0xfee00000
	.set	EOI_FLAG, 0x4b564d04	# the MSR that names the flag
	.set	MIX, 0x9e3779b1

	.set	USER32, 0x28 | 3
	.set	USERDATA, 0x30 | 3
	.set	USER64, 0x38 | 3

	.macro	at reg, label	# the address of a label
	mov	\reg, BASE + \label - start
	.endm

	.macro	mix value	# into the main line's digest
	xor	rbp, \value
	imul	rbp, rbp, 0x1e3779b1
	rol	rbp, 29
	.endm

	.macro	section n
	mov	al, \n
	out	0x80, al
	.endm

	.macro	fault from	# the next fault goes on at the label
	at	rax, \from
	mov	[BASE + resume - start], eax
	.endm

start:
	mov	esp, STACK
	at	rax, gdtr
	lgdt	[rax]
	call	setup
	mov	rbp, 1
	mov	byte ptr [BASE + round - start], 2
again:
	sti
	call	strings
	call	shadows
	call	masked
	call	halts
	call	faults
	call	doubles
	call	floats
	call	modified
	call	user32
	call	user64
	call	windows
	call	clocks
	call	stepped
	call	endings
	dec	byte ptr [BASE + round - start]
	jnz	again
	cli
	mov	rax, [BASE + digest - start]
	mix	rax
	mov	rax, [BASE + seen - start]
	mix	rax
	mov	ecx, 16
	mov	edx, 0x3f8
1:	rol	rbp, 4
	mov	eax, ebp
	and	eax, 15
	add	al, '0'
	cmp	al, '9'
	jbe	2f
	add	al, 'a' - '0' - 10
2:	out	dx, al
	dec	ecx
	jnz	1b
	mov	al, 10
	out	dx, al
	mov	edx, 0x604
	mov	ax, 0x2000
	out	dx, ax
	ud2

# Repeated string instructions: memory, ports, and memory of devices, where
# each item is an exit.
strings:
	section	1
	mov	r12d, 2
1:	mov	esi, SOURCE + 5
	mov	edi, TARGET + 4000
	mov	ecx, 130
	rep movsb
	mov	edi, TARGET + 1
	mov	rax, rbp
	mov	ecx, 60
	rep stosq
	mov	esi, SOURCE
	mov	edx, 0x80
	mov	ecx, 70
	rep outsb
	mov	edi, TARGET + 4090
	mov	edx, 0x3fd
	mov	ecx, 40
	rep insb
	std
	mov	esi, SOURCE + 4000
	mov	edi, TARGET + 4400
	mov	ecx, 90
	rep movsd
	cld
	mov	esi, APIC + 0x80
	mov	edi, TARGET + 100
	mov	ecx, 12
	rep movsd
	mov	esi, TARGET
	mov	edi, 0xe0000000
	mov	ecx, 9
	rep movsq
	mov	esi, TARGET + 4000
	mov	ecx, 50
2:	lodsd
	mix	rax
	dec	ecx
	jnz	2b
	dec	r12d
	jnz	1b
	ret

# The shadows of STI, MOV SS and POP SS (that one in 32-bit code), with an
# interrupt that waits for the flag or for the shadow to end.
shadows:
	section	2
	mov	r12d, 2
1:	cli
	out	0x80, al
	sti
	inc	r13
	inc	r14
	cli
	out	0x80, al
	sti				# nothing may come between these two
	cli
	mix	r13
	out	0x80, al
	sti
	sti
	out	0x80, al
	cli
	out	0x80, al
	sti
	out	0x80, al
	mov	eax, 0x18
	cli
	out	0x80, al
	sti
	mov	ss, eax
	inc	r13
	mov	ss, eax
	out	0x80, al
	mov	ss, eax
	mov	ss, eax
	inc	r14
	mov	ecx, APIC + 0x80	# the task priority, 0: a null selector
	mov	ss, word ptr [rcx]
	inc	r13
	mov	ss, eax
	fault	2f
	mov	rax, NOWHERE
	mov	ecx, 0x18
	mov	ss, ecx
	mov	rax, [rax]
2:	cli
	out	0x80, al
	pushfq
	or	qword ptr [rsp], 0x200
	popfq				# no shadow here
	inc	r13
	mix	r14
	dec	r12d
	jnz	1b
	ret

# Interrupts off for long, with exits, reads of the clock and faults in it.
masked:
	section	3
	mov	r12d, 2
1:	cli
	mov	ecx, 12
2:	out	0x80, al
	rdtsc
	mix	rax
	mov	r13d, 9
3:	lea	r14, [r14 + r13]
	dec	r13d
	jnz	3b
	dec	ecx
	jnz	2b
	fault	4f
	ud2
4:	mix	r14
	sti
	nop
	dec	r12d
	jnz	1b
	ret

# HLT: behind STI, with an interrupt that came while they were off, and with
# none.
halts:
	section	4
	mov	r12d, 2
1:	cli
	out	0x80, al
	out	0x80, al
	sti
	hlt
	inc	r13
	hlt
	mov	rax, [BASE + seen - start]
	mix	rax
	cli
	mov	eax, 0x18
	sti
	mov	ss, eax
	hlt
	mix	r13
	dec	r12d
	jnz	1b
	ret

# Faults, and faults in their handler (the page fault's makes two more).
faults:
	section	5
	mov	r12d, 2
1:	fault	2f
	mov	rax, NOWHERE + 0x123
	mov	qword ptr [rax], 7
2:	fault	3f
	mov	rax, 0x7fffffffffffffff
	mov	rax, [rax]		# not canonical
3:	fault	4f
	xor	edx, edx
	xor	ecx, ecx
	div	ecx
4:	fault	5f
	ud2
5:	fault	6f
	mov	eax, 0x1230
	mov	ds, eax
6:	fault	7f
	mov	ecx, 0x12345
	rdmsr
7:	fault	8f
	mov	esi, SOURCE
	mov	rdi, WINDOW + 4096 - 24
	mov	ecx, 10
	rep movsq			# faults at the fourth item
8:	int3
	mix	rcx
	dec	r12d
	jnz	1b
	ret

# A double fault on a stack of its own, survived: the gate of the first fault
# isn't present. Its stack is written before: should KVM have to make the page
# writable while the double fault is delivered, QEMU's TCG forgets that it is one
# and delivers the second fault.
doubles:
	section	6
	mov	r12d, 2
	at	rbx, idt
1:	mov	qword ptr [STACK_IST - 8], 0
	mov	qword ptr [STACK - 4096], 0
	and	byte ptr [rbx + 13*16 + 5], 0x7f
	fault	2f
	mov	rax, 0x7fffffffffffffff
	mov	rax, [rax]
2:	or	byte ptr [rbx + 13*16 + 5], 0x80
	and	byte ptr [rbx + 14*16 + 5], 0x7f
	fault	3f
	mov	rax, NOWHERE
	mov	rax, [rax]
3:	or	byte ptr [rbx + 14*16 + 5], 0x80
	out	0x80, al
	dec	r12d
	jnz	1b
	ret

# x87 and SSE, with their state across exits and interrupts.
floats:
	section	7
	fninit
	fld1
	fldpi
	movaps	xmm0, [rip + ones]
	movaps	xmm1, [rip + thirds]
	movaps	xmm2, xmm1
	mov	r12d, 8
1:	mov	ecx, 7
2:	fmul	st(1), st
	fxch
	fsqrt
	fadd	st, st(1)
	mulpd	xmm2, xmm1
	addpd	xmm2, xmm0
	sqrtpd	xmm3, xmm2
	divpd	xmm3, xmm1
	paddq	xmm4, xmm3
	pshufd	xmm5, xmm4, 0x4e
	dec	ecx
	jnz	2b
	out	0x80, al
	rdtsc
	cvtsi2sd xmm6, eax
	addpd	xmm4, xmm6
	dec	r12d
	jnz	1b
	fxsave	[TARGET]
	mov	esi, TARGET
	mov	ecx, 64
3:	lodsq
	mix	rax
	dec	ecx
	jnz	3b
	ret

# Self-modifying code: the instruction right ahead, and a function written anew.
modified:
	section	8
	mov	r12d, 8
1:	mov	[rip + 2f + 1], ebp
	jmp	2f
2:	mov	eax, 0x11111111
	mix	rax
	mov	[rip + 3f + 1], r12d
3:	mov	eax, 0x22222222
	mix	rax
	mov	edi, MADE
	at	rsi, made
	mov	ecx, made_end - made
	rep movsb
	mov	[MADE + 1], ebp
	mov	ecx, MADE
	call	rcx
	mix	rax
	test	r12d, 3
	jnz	4f
	out	0x80, al
4:	dec	r12d
	jnz	1b
	ret

made:	mov	eax, 0
	lea	eax, [rax + rax*4]
	ret
made_end:

# 32-bit code at privilege 3 that may use ports and the interrupt flag, and
# calls the kernel by int 80h and by SYSCALL.
user32:
	section	9
	at	rax, in32
	mov	ecx, USER32
	jmp	touser

user64:
	section	10
	at	rax, in64
	mov	ecx, USER64
touser:	mov	[BASE + kernel - start], rsp
	mov	[BASE + line - start], rbp
	push	USERDATA
	push	STACK_USER
	push	0x3202			# IF, IOPL 3
	push	rcx
	push	rax
	mov	eax, USERDATA
	mov	ds, eax
	mov	es, eax
	xor	ebx, ebx
	iretq

# Service 0 of int 80h ends the user code; every other one is folded by the
# common handler and returns.
leave:	mov	eax, 0x18
	mov	ds, eax
	mov	es, eax
	mov	ss, eax
	mov	rsp, [BASE + kernel - start]
	mov	rbp, [BASE + line - start]
	mix	rbx
	sti
	ret

	.code32
in32:	mov	esi, 2
1:	mov	eax, 5
	int	0x80
	add	ebx, eax
	out	0x80, al
	push	ss
	pop	ss
	inc	ebx
	push	ss
	pop	ss
	out	0x80, al
	cli
	out	0x80, al
	sti
	push	ss
	pop	ss
	add	ebx, 7
	mov	eax, 6
	mov	ebp, ebx
	syscall
	add	ebx, eax
	mov	edi, TARGET
	mov	ecx, 60
	rep stosd
	mov	ecx, 40
2:	imul	ebx, ebx, 13
	inc	ebx
	loop	2b
	rdtsc
	add	ebx, eax
	out	0x80, al
	dec	esi
	jnz	1b
	xor	eax, eax
	int	0x80

	.code64
in64:	mov	esi, 2
1:	mov	eax, 9
	syscall
	add	rbx, rax
	add	rbx, r11
	out	0x80, al
	cli
	out	0x80, al
	sti
	nop				# not SYSCALL: hvd steps over a shadow that TCG lost
	syscall
	add	rbx, rax
	mov	eax, 3
	int	0x80
	mov	rax, NOWHERE
	mov	edi, BASE + 2f - start
	mov	[BASE + resume - start], edi
	mov	[rax], rbx
2:	add	rbx, 3
	dec	esi
	jnz	1b
	xor	eax, eax
	int	0x80

# SYSCALL comes here from 64-bit and from 32-bit code, interrupts off.
call64:	mov	[BASE + usersp - start], rsp
	mov	esp, STACK_RING0
	push	rcx
	push	r11
	sti
	out	0x80, al
	rdtsc
	cli
	pop	r11
	pop	rcx
	mov	rsp, [BASE + usersp - start]
	sysretq

call32:	mov	[BASE + usersp - start], rsp
	mov	esp, STACK_RING0
	push	rcx
	push	r11
	sti
	out	0x80, al
	nop
	cli
	pop	r11
	pop	rcx
	mov	rsp, [BASE + usersp - start]
	sysretd

# Two sets of page tables that differ in one window.
windows:
	section	11
	mov	r12d, 6
	mov	rsi, WINDOW
1:	mov	eax, TABLES
	mov	cr3, rax
	mov	rax, [rsi]
	mix	rax
	mov	[rsi + r12*8], rbp
	mov	eax, PML4
	mov	cr3, rax
	mov	rax, [rsi]
	mix	rax
	mov	[rsi + r12*8], rbp
	test	r12d, 1
	jz	2f
	out	0x80, al
2:	dec	r12d
	jnz	1b
	ret

# The clock, read by both instructions, alone and between exits.
clocks:
	section	12
	mov	r12d, 16
1:	rdtsc
	shl	rdx, 32
	or	rax, rdx
	mix	rax
	test	r12d, 7
	jnz	2f
	mov	ecx, 0x10
	rdmsr
	mix	rax
	out	0x80, al
2:	dec	r12d
	jnz	1b
	ret

# The guest single-steps itself, over all that is special.
stepped:
	section	13
	pushfq
	or	qword ptr [rsp], 0x100
	popfq
	inc	r13
	out	0x80, al
	rdtsc
	mov	esi, SOURCE
	mov	edi, TARGET
	mov	ecx, 5
	rep movsb
	cli
	out	0x80, al
	sti
	inc	r14
	mov	eax, 0x18
	mov	ss, eax
	inc	r13
	pushfq
	pop	rax
	mix	rax
	cli
	sti
	cli
	sti
	out	0x80, al
	mov	eax, PML4
	mov	cr3, rax
	hlt
	fault	1f
	mov	rax, NOWHERE
	mov	rax, [rax]
1:	pushfq
	and	qword ptr [rsp], ~0x100
	popfq
	ret

# The flag by which the timer's interrupt ends without an exit: addresses that
# can't be, none for a while, another one.
endings:
	section	14
	mov	r12d, 3
1:	mov	ecx, EOI_FLAG
	fault	2f
	mov	eax, BASE + flag - start + 3
	xor	edx, edx
	wrmsr
2:	fault	3f
	mov	eax, 1
	mov	edx, 1			# 4 GiB
	wrmsr
3:	rdmsr
	mix	rax
	xor	eax, eax
	xor	edx, edx
	wrmsr
	out	0x80, al
	out	0x80, al
	hlt
	mov	eax, BASE + flag - start + 9
	wrmsr
	mov	dword ptr [BASE + flagged - start], BASE + flag - start + 8
	out	0x80, al
	out	0x80, al
	hlt
	out	0x80, al
	movzx	rax, byte ptr [BASE + flag - start + 8]
	mix	rax
	cli				# no interrupt between the old flag and the new one
	mov	eax, BASE + flag - start + 1
	wrmsr
	mov	dword ptr [BASE + flagged - start], BASE + flag - start
	sti
	nop
	dec	r12d
	jnz	1b
	ret

# One entry for each vector: an error code, the vector, then the common part.
# Vectors 8, 10 to 14 and 17 bring an error code of their own.
	.balign	16
stubs:
	.set	v, 0
	.rept	256
	.balign	16
	.if	(v == 8) || ((v >= 10) && (v <= 14)) || (v == 17)
	.else
	push	0
	.endif
	push	v
	jmp	common
	.set	v, v + 1
	.endr

	.balign	16
common:
	push	rax
	push	rbx
	push	rcx
	push	rdx
	push	rsi
	push	rdi
	push	rbp
	push	r8
	push	r9
	push	r10
	push	r11
	push	r12
	push	r13
	push	r14
	push	r15
	cld
	# RF behind INT3 tells whether the host left the guest since the IRETQ that
	# set it: under QEMU's TCG, not on a processor. It isn't folded.
	cmp	dword ptr [rsp + 15*8], 3
	jne	0f
	and	dword ptr [rsp + 19*8], ~0x10000
0:	# 15 registers, vector, error code, RIP, CS, RFLAGS, RSP, SS
	xor	ecx, ecx
	mov	rbx, [BASE + digest - start]
1:	xor	rbx, [rsp + rcx*8]
	imul	rbx, rbx, MIX - 0x80000000
	rol	rbx, 29
	inc	ecx
	cmp	ecx, 22
	jb	1b
	inc	qword ptr [BASE + seen - start]
	add	rbx, [BASE + seen - start]
	mov	rdx, cr2
	xor	rbx, rdx
	mov	[BASE + digest - start], rbx
	mov	rax, [rsp + 15*8]
	cmp	eax, 0x40
	je	timer
	cmp	eax, 0x80
	je	service
	cmp	eax, 0x2f
	ja	done
	cmp	eax, 0x20
	jae	line8259
	cmp	eax, 1			# single step, int3: go on
	je	done
	cmp	eax, 3
	je	done
	# A fault: go on where its site says. With interrupts on, if they were.
	mov	ecx, [BASE + resume - start]
	mov	[rsp + 17*8], rcx
	test	byte ptr [rsp + 19*8 + 1], 2
	jz	2f
	sti
2:	out	0x80, al
	cmp	eax, 14
	jne	done
	cmp	dword ptr [BASE + depth - start], 2
	jae	done
	inc	dword ptr [BASE + depth - start]
	mov	rcx, NOWHERE + 0x5000
	mov	dword ptr [BASE + resume - start], BASE + 3f - start
	mov	rdx, [rcx]
3:	dec	dword ptr [BASE + depth - start]
done:
	cli
	pop	r15
	pop	r14
	pop	r13
	pop	r12
	pop	r11
	pop	r10
	pop	r9
	pop	r8
	pop	rbp
	pop	rdi
	pop	rsi
	pop	rdx
	pop	rcx
	pop	rbx
	pop	rax
	add	rsp, 16
	iretq

service:
	cmp	qword ptr [rsp + 14*8], 0
	je	leave
	sti
	out	0x80, al
	jmp	done

timer:
	mov	ecx, [BASE + flagged - start]
	btr	dword ptr [rcx], 0
	jc	1f
	mov	eax, APIC + 0xb0
	mov	dword ptr [rax], 0
1:	sti				# the next one may nest
	nop
	jmp	done

line8259:
	cmp	eax, 0x24
	je	uart
	cmp	eax, 0x29
	je	button
	cmp	eax, 0x2b
	je	frame
	cmp	eax, 0x27		# spurious: nothing in service
	je	done
eoi:	mov	eax, [rsp + 15*8]
	mov	ecx, eax
	mov	al, 0x20
	cmp	ecx, 0x28
	jb	1f
	out	0xa0, al
1:	out	0x20, al
	jmp	done

uart:	mov	edx, 0x3fd
	in	al, dx
	test	al, 1
	jz	eoi
	mov	edx, 0x3f8
	in	al, dx
	movzx	eax, al
	call	note
	jmp	uart

button:	mov	edx, 0x600
	in	ax, dx
	movzx	eax, ax
	call	note
	mov	ax, 0x100
	out	dx, ax
	jmp	eoi

frame:	mov	edx, NET_ISR
	in	al, dx
	movzx	eax, al
	call	note
	mov	r8d, RING
1:	movzx	ecx, word ptr [BASE + used - start]
	cmp	cx, [r8 + 0x2002]
	je	eoi
	mov	edx, ecx
	and	edx, 7
	mov	r9d, [r8 + 0x2004 + rdx*8]	# id
	mov	eax, [r8 + 0x2008 + rdx*8]	# length
	call	note
	mov	r10d, r9d
	shl	r10d, 9
	mov	rax, [r8 + 0x3000 + r10 + 12]
	call	note
	mov	[r8 + 0x1004 + rdx*2], r9w
	inc	word ptr [r8 + 0x1002]
	inc	word ptr [BASE + used - start]
	jmp	1b

# note mixes rax into the handlers' digest; interrupts are off.
note:	xor	rax, [BASE + digest - start]
	imul	rax, rax, 0x1e3779b1
	rol	rax, 31
	mov	[BASE + digest - start], rax
	ret

# Everything that is done once.
setup:
	# IDT: interrupt gates to the stubs; int 80h may come from privilege 3,
	# the double fault has a stack of its own.
	at	rdi, idt
	at	rax, stubs
	xor	ecx, ecx
1:	mov	[rdi], ax
	mov	word ptr [rdi + 2], 0x10
	mov	word ptr [rdi + 4], 0x8e00
	cmp	ecx, 0x80
	jne	2f
	mov	byte ptr [rdi + 5], 0xee
2:	cmp	ecx, 8
	jne	3f
	mov	byte ptr [rdi + 4], 1
3:	mov	edx, eax
	shr	edx, 16
	mov	[rdi + 6], dx
	mov	qword ptr [rdi + 8], 0
	add	rdi, 16
	add	rax, 16
	inc	ecx
	cmp	ecx, 256
	jb	1b
	at	rax, idtr
	lidt	[rax]

	# The task segment's descriptor, then the segment.
	at	rax, tss
	at	rdi, gdt
	mov	word ptr [rdi + 0x40], 103
	mov	[rdi + 0x42], ax
	mov	edx, eax
	shr	edx, 16
	mov	[rdi + 0x44], dl
	mov	byte ptr [rdi + 0x45], 0x89
	mov	dword ptr [rax + 4], STACK_RING0
	mov	dword ptr [rax + 36], STACK_IST
	mov	eax, 0x40
	ltr	ax
	mov	eax, 0x18
	mov	ds, eax
	mov	es, eax
	mov	ss, eax

	# CR4: OSFXSR and OSXMMEXCPT. SYSCALL.
	mov	rax, cr4
	or	eax, 0x600
	mov	cr4, rax
	mov	ecx, 0xc0000080
	rdmsr
	or	eax, 1
	wrmsr
	mov	ecx, 0xc0000081		# STAR: kernel 10h, user 28h
	xor	eax, eax
	mov	edx, (0x28 | 3) << 16 | 0x10
	wrmsr
	xor	edx, edx
	mov	ecx, 0xc0000082
	at	rax, call64
	wrmsr
	mov	ecx, 0xc0000083
	at	rax, call32
	wrmsr
	mov	ecx, 0xc0000084
	mov	eax, 0x300		# IF and TF off
	wrmsr

	# Something to copy.
	mov	edi, SOURCE
	mov	rax, 0x0123456789abcdef
	mov	ecx, 1024
4:	stosq
	imul	rax, rax, 0x1e3779b1
	rol	rax, 7
	dec	ecx
	jnz	4b

	# Two sets of tables with one page each in the window.
	mov	esi, PML4
	mov	edi, TABLES
	mov	ecx, 512
	rep movsq
	mov	dword ptr [TABLES + 8], TABLES + 0x1007
	mov	dword ptr [TABLES + 0x1000], TABLES + 0x2007
	mov	dword ptr [TABLES + 0x2000], TABLES + 0x3007
	mov	dword ptr [TABLES + 0x3000], PAGE_A + 7
	mov	dword ptr [PML4 + 8], TABLES + 0x4007
	mov	dword ptr [TABLES + 0x4000], TABLES + 0x5007
	mov	dword ptr [TABLES + 0x5000], TABLES + 0x6007
	mov	dword ptr [TABLES + 0x6000], PAGE_B + 7
	mov	rax, cr3
	mov	cr3, rax

	# PIC: 20h and 28h, lines 2, 4, 9 and 11 open.
	mov	al, 0x11
	out	0x20, al
	out	0xa0, al
	mov	al, 0x20
	out	0x21, al
	mov	al, 0x28
	out	0xa1, al
	mov	al, 4
	out	0x21, al
	mov	al, 2
	out	0xa1, al
	mov	al, 1
	out	0x21, al
	out	0xa1, al
	mov	al, ~0x14 & 0xff
	out	0x21, al
	mov	al, ~0x0a & 0xff
	out	0xa1, al

	# UART: received data interrupts. The power button.
	mov	edx, 0x3fa
	mov	al, 1
	out	dx, al
	mov	edx, 0x3fc
	mov	al, 8
	out	dx, al
	mov	edx, 0x3f9
	mov	al, 1
	out	dx, al
	mov	edx, 0x602
	mov	ax, 0x100
	out	dx, ax

	# Local APIC: a periodic timer of 10 ms at vector 40h.
	mov	edi, APIC
	mov	dword ptr [rdi + 0xf0], 0x1ff
	mov	dword ptr [rdi + 0x3e0], 0xb
	mov	dword ptr [rdi + 0x320], 0x20040
	mov	dword ptr [rdi + 0x380], 10000000
	mov	ecx, EOI_FLAG
	mov	eax, BASE + flag - start + 1
	xor	edx, edx
	wrmsr
	mov	dword ptr [BASE + flagged - start], BASE + flag - start

	# Network: VIRTIO_F_VERSION_1 alone, eight receive buffers of 512 bytes.
	mov	edi, NET
	mov	byte ptr [rdi + 0x14], 0
	mov	byte ptr [rdi + 0x14], 3
	mov	dword ptr [rdi + 8], 1
	mov	dword ptr [rdi + 0xc], 1
	mov	byte ptr [rdi + 0x14], 11
	mov	word ptr [rdi + 0x16], 0
	mov	word ptr [rdi + 0x18], 8
	mov	dword ptr [rdi + 0x20], RING
	mov	dword ptr [rdi + 0x24], 0
	mov	dword ptr [rdi + 0x28], RING + 0x1000
	mov	dword ptr [rdi + 0x2c], 0
	mov	dword ptr [rdi + 0x30], RING + 0x2000
	mov	dword ptr [rdi + 0x34], 0
	mov	word ptr [rdi + 0x1c], 1
	mov	esi, RING
	xor	ecx, ecx
	mov	edx, RING + 0x3000
5:	mov	eax, ecx
	shl	eax, 4
	mov	[rsi + rax], rdx
	mov	dword ptr [rsi + rax + 8], 512
	mov	dword ptr [rsi + rax + 12], 2
	mov	[rsi + 0x1004 + rcx*2], cx
	add	edx, 512
	inc	ecx
	cmp	ecx, 8
	jb	5b
	mov	word ptr [rsi + 0x1002], 8
	mov	byte ptr [rdi + 0x14], 15
	ret

	.balign	16
ones:	.double	1.0, 1.0
thirds:	.double	0.75, 1.25
gdt:	.quad	0, 0
	.quad	0x00af9a000000ffff	# 10h code
	.quad	0x00cf92000000ffff	# 18h data
	.quad	0
	.quad	0x00cffa000000ffff	# 28h user code, 32 bits
	.quad	0x00cff2000000ffff	# 30h user data
	.quad	0x00affa000000ffff	# 38h user code, 64 bits
	.quad	0, 0			# 40h task
gdtr:	.word	. - gdt - 1
	.quad	BASE + gdt - start
idtr:	.word	4095
	.quad	BASE + idt - start
	.balign	16
tss:	.fill	104, 1, 0
	.balign	16
idt:	.fill	4096, 1, 0
digest:	.quad	0
seen:	.quad	0
kernel:	.quad	0
line:	.quad	0
usersp:	.quad	0
resume:	.quad	0
flag:	.quad	0, 0
flagged: .quad	0
depth:	.long	0
used:	.word	0
round:	.byte	0
	.balign	16
