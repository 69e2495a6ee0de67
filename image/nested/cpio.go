package nested

import (
	"fmt"
	"io"
	"sort"
)

// WriteInitrd writes files as an initramfs: the "newc" form of cpio, which is
// what Linux unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
// Each entry is a header of 13 hexadecimal numbers of 8 digits behind the magic
// "070701", the name with a NUL, and the content; name and content are padded
// to 4 bytes. All files are executable.
func WriteInitrd(w io.Writer, files map[string][]byte) error {
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	sort.Strings(names)
	for i, n := range names {
		if err := cpioEntry(w, i+1, 0o100755, n, files[n]); err != nil {
			return err
		}
	}
	return cpioEntry(w, 0, 0, "TRAILER!!!", nil)
}

func cpioEntry(w io.Writer, inode, mode int, name string, content []byte) error {
	head := "070701"
	for _, v := range []int{inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0} {
		head += fmt.Sprintf("%08x", v)
	}
	head += name + "\x00"
	for _, part := range [][]byte{pad([]byte(head)), pad(content)} {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

func pad(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b[:len(b):len(b)], 0)
	}
	return b
}
