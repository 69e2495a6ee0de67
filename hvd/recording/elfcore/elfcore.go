// Package elfcore lays out a guest's memory and registers as an ELF core file, as
// gdb and crash open it with the guest's vmlinux.
//
// # Place
//
// hvd/playback makes cores with it. Pure but for the file that it is given. It
// imports nothing of ours.
//
// # The file
//
//	ELF header      ET_CORE, x86-64
//	PT_NOTE         CORE/NT_PRSTATUS: the CPU's registers
//	                VMCOREINFO: what the guest's kernel says of itself, for crash
//	PT_LOAD ...     the mappings in force, p_vaddr and p_paddr
//	PT_LOAD ...     each region of physical memory, p_vaddr = p_paddr
//	notes, padding to a page
//	memory          once; all PT_LOADs point into it
//
// Pages of zeros are holes of the file. Sources: the ELF specification (System V
// ABI, chapters 4 and 5); struct elf_prstatus of Linux 6.12 (include/linux/elfcore.h
// and arch/x86/include/asm/user_64.h).
package elfcore

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io"
)

const (
	pageSize   = 4096
	headerSize = 64
	progSize   = 56
	// maxMappings bounds the mappings in a file; gdb reads them one by one.
	maxMappings = 16 << 10
)

// Registers are those of struct user_regs_struct.
type Registers struct {
	R15, R14, R13, R12, RBP, RBX, R11, R10, R9, R8, RAX, RCX, RDX, RSI, RDI, OrigRAX uint64
	RIP, CS, RFLAGS, RSP, SS, FSBase, GSBase, DS, ES, FS, GS                         uint64
}

// Region is contiguous physical memory.
type Region struct {
	Physical uint64
	Bytes    []byte
}

// Mapping is memory at a virtual address, contiguous in both spaces.
type Mapping struct {
	Virtual, Physical, Size uint64
}

// Core is what goes into a file.
type Core struct {
	Registers  Registers
	Memory     []Region
	Mappings   []Mapping
	VMCoreInfo []byte // the note's text, or nil
}

// File is where a core goes: an empty file.
type File interface {
	io.WriterAt
	Truncate(size int64) error
}

// Write writes a core.
func Write(f File, c Core) error {
	mappings := c.Mappings[:min(len(c.Mappings), maxMappings)]
	notes := c.notes()
	count := 1 + len(mappings) + len(c.Memory)
	notesAt := uint64(headerSize + count*progSize)
	dataAt := (notesAt + uint64(len(notes)) + pageSize - 1) &^ (pageSize - 1)

	h := elf.Header64{
		Type: uint16(elf.ET_CORE), Machine: uint16(elf.EM_X86_64), Version: 1,
		Phoff: headerSize, Ehsize: headerSize, Phentsize: progSize, Phnum: uint16(count),
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	progs := []elf.Prog64{{Type: uint32(elf.PT_NOTE), Off: notesAt, Filesz: uint64(len(notes)), Align: 4}}
	load := func(virtual, physical, size, off uint64) {
		progs = append(progs, elf.Prog64{
			Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_W | elf.PF_X), Off: off,
			Vaddr: virtual, Paddr: physical, Filesz: size, Memsz: size, Align: pageSize,
		})
	}
	for _, m := range mappings {
		load(m.Virtual, m.Physical, m.Size, dataAt+c.offset(m.Physical))
	}
	end := dataAt
	for _, r := range c.Memory {
		load(r.Physical, r.Physical, uint64(len(r.Bytes)), end)
		end += uint64(len(r.Bytes))
	}
	var b bytes.Buffer
	for _, v := range []any{h, progs, notes} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			return err
		}
	}
	if err := f.Truncate(int64(end)); err != nil {
		return err
	}
	if _, err := f.WriteAt(b.Bytes(), 0); err != nil {
		return err
	}
	at := int64(dataAt)
	for _, r := range c.Memory {
		if err := writeSparse(f, at, r.Bytes); err != nil {
			return err
		}
		at += int64(len(r.Bytes))
	}
	return nil
}

// offset is where physical memory lies among all of it.
func (c Core) offset(physical uint64) uint64 {
	var at uint64
	for _, r := range c.Memory {
		if physical >= r.Physical && physical-r.Physical < uint64(len(r.Bytes)) {
			return at + physical - r.Physical
		}
		at += uint64(len(r.Bytes))
	}
	return 0
}

var zero [pageSize]byte

func writeSparse(f io.WriterAt, at int64, b []byte) error {
	for len(b) > 0 {
		n := min(len(b), pageSize)
		if !bytes.Equal(b[:n], zero[:n]) {
			if _, err := f.WriteAt(b[:n], at); err != nil {
				return err
			}
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}

const (
	ntPRStatus   = 1
	statusRegs   = 112 // offset of pr_reg in struct elf_prstatus
	statusPID    = 32
	statusSize   = 336
	vmcoreinfoAs = "VMCOREINFO"
)

func (c Core) notes() []byte {
	status := make([]byte, 0, statusSize)
	status = append(status, make([]byte, statusPID)...)
	status = binary.LittleEndian.AppendUint32(status, 1)
	status = append(status, make([]byte, statusRegs-len(status))...)
	status, _ = binary.Append(status, binary.LittleEndian, c.Registers)
	status = append(status, make([]byte, statusSize-len(status))...)
	b := note(nil, "CORE", ntPRStatus, status)
	if c.VMCoreInfo != nil {
		b = note(b, vmcoreinfoAs, 0, c.VMCoreInfo)
	}
	return b
}

func note(dst []byte, name string, kind uint32, data []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(name)+1))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(data)))
	dst = binary.LittleEndian.AppendUint32(dst, kind)
	pad := func() {
		for len(dst)%4 != 0 {
			dst = append(dst, 0)
		}
	}
	dst = append(append(dst, name...), 0)
	pad()
	dst = append(dst, data...)
	pad()
	return dst
}

// FindVMCoreInfo looks for the note that a Linux guest keeps in its memory for its
// own crash dumps (kernel/vmcore_info.c), and returns its text; nil without one.
func FindVMCoreInfo(memory []byte) []byte {
	head := note(nil, vmcoreinfoAs, 0, nil)[12:]
	for at := 0; ; {
		i := bytes.Index(memory[at:], append(head, "OSRELEASE="...))
		if i < 0 {
			return nil
		}
		at += i
		if at >= 12 && binary.LittleEndian.Uint32(memory[at-12:]) == uint32(len(vmcoreinfoAs)+1) {
			n := binary.LittleEndian.Uint32(memory[at-8:])
			if text := memory[at+len(head):]; n <= pageSize && int(n) <= len(text) {
				return bytes.TrimRight(text[:n:n], "\x00")
			}
		}
		at++
	}
}
