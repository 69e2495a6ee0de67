package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/squashfs"
)

// Parts are what an update takes from an image.
type Parts struct {
	// MBR is the disk's first sector, Boot and Root the two file systems without what is unused at their end.
	MBR, Boot, Root []byte
	// SBOM is the packer's list of what the programs were built from, JSON.
	SBOM []byte
}

// unit is what the file systems' sizes are rounded up to, in bytes.
const unit = 4096

// Parts reads them.
func (i *Image) Parts() (*Parts, error) {
	boot, err := partition(i.Path, bootPartition)
	if err != nil {
		return nil, err
	}
	root, err := partition(i.Path, rootPartition)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(i.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := &Parts{MBR: make([]byte, 512), Boot: make([]byte, boot.size)}
	if _, err := f.ReadAt(p.MBR, 0); err != nil {
		return nil, err
	}
	if _, err := f.ReadAt(p.Boot, boot.start); err != nil {
		return nil, err
	}
	used := len(bytes.TrimRight(p.Boot, "\x00"))
	p.Boot = p.Boot[:(used+unit-1)/unit*unit]
	if p.Root, err = readSquash(f, root); err != nil {
		return nil, err
	}
	if p.SBOM, err = readSBOM(f, root); err != nil {
		return nil, fmt.Errorf("sbom.json in the root file system: %w", err)
	}
	return p, nil
}

// readSquash reads a squashfs, of the size that its superblock tells.
func readSquash(f *os.File, e extent) ([]byte, error) {
	s := make([]byte, 96)
	if _, err := f.ReadAt(s, e.start); err != nil {
		return nil, err
	}
	used := int64(binary.LittleEndian.Uint64(s[40:]))
	if binary.LittleEndian.Uint32(s) != squashMagic || used < 96 || used > e.size-unit {
		return nil, errors.New("the root file system is no squashfs")
	}
	b := make([]byte, (used+unit-1)/unit*unit)
	_, err := f.ReadAt(b, e.start)
	return b, err
}

func readSBOM(f *os.File, e extent) ([]byte, error) {
	fs, err := squashfs.Read(file.New(f, true), e.size, e.start, 0)
	if err != nil {
		return nil, err
	}
	in, err := fs.OpenFile("etc/gokrazy/sbom.json", os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	return io.ReadAll(io.LimitReader(in, maxTables))
}
