package ext4

// run says that count blocks of a file from logical on lie on the disk from
// physical on. What no run covers reads as zeros.
type run struct{ logical, physical, count uint64 }

// runs maps a file's blocks, whichever way it stores the map.
func (f *FS) runs(i *inode) ([]run, error) {
	m := mapper{fs: f, inode: i}
	var err error
	if i.flags&flagExtents != 0 {
		err = m.extents(i.data[:], -1)
	} else {
		err = m.blockMap()
	}
	return m.runs, err
}

// mapper collects one file's runs, within limits.
type mapper struct {
	fs    *FS
	inode *inode
	runs  []run
	nodes int
}

// node reads one block of the map.
func (m *mapper) node(block uint64) ([]byte, error) {
	if m.nodes++; m.nodes > maxNodes {
		return nil, damaged("the map of inode %d is too large", m.inode.number)
	}
	b := make([]byte, m.fs.block)
	return b, m.fs.readBlocks(b, block)
}

func (m *mapper) add(r run) error {
	if len(m.runs) >= maxRuns {
		return damaged("inode %d has too many extents", m.inode.number)
	}
	if n := len(m.runs); n > 0 {
		last := &m.runs[n-1]
		if r.logical < last.logical+last.count {
			return damaged("extents of inode %d overlap", m.inode.number)
		}
		if last.logical+last.count == r.logical && last.physical+last.count == r.physical {
			last.count += r.count
			return nil
		}
	}
	m.runs = append(m.runs, r)
	return nil
}

// extents walks an extent tree's node b, which must be of the given depth, or
// of any when it is negative: a header of 12 bytes {magic 2, entries 2, max 2,
// depth 2, generation 4}, then entries of 12 bytes, either
// index {logical 4, block low 4, block high 2, unused 2} or
// leaf {logical 4, count 2, block high 2, block low 4}.
func (m *mapper) extents(b []byte, depth int) error {
	n, d := int(le.Uint16(b[2:])), int(le.Uint16(b[6:]))
	if le.Uint16(b) != 0xf30a || 12+12*n > len(b) || d > maxDepth || depth >= 0 && d != depth {
		return damaged("extent tree of inode %d", m.inode.number)
	}
	for k := range n {
		e := b[12+12*k:][:12]
		if d > 0 {
			child, err := m.node(uint64(le.Uint32(e[4:])) | uint64(le.Uint16(e[8:]))<<32)
			if err != nil {
				return err
			}
			if err := m.extents(child, d-1); err != nil {
				return err
			}
			continue
		}
		count := uint64(le.Uint16(e[4:]))
		if count > 1<<15 {
			continue // allocated and never written: zeros
		}
		err := m.add(run{
			logical: uint64(le.Uint32(e)), count: count,
			physical: uint64(le.Uint32(e[8:])) | uint64(le.Uint16(e[6:]))<<32,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// blockMap walks the map of ext2 and ext3: 12 blocks, then a block of block
// numbers, a block of those, and a block of those.
func (m *mapper) blockMap() error {
	var logical uint64
	for k := range 15 {
		block := uint64(le.Uint32(m.inode.data[4*k:]))
		if err := m.indirect(block, max(0, k-11), &logical); err != nil {
			return err
		}
	}
	return nil
}

// indirect adds the blocks below one block number, level levels deep.
func (m *mapper) indirect(block uint64, level int, logical *uint64) error {
	span := uint64(1)
	for range level {
		span *= uint64(m.fs.block / 4)
	}
	end := (m.inode.size + uint64(m.fs.block) - 1) / uint64(m.fs.block)
	if block == 0 || *logical >= end {
		*logical += span
		return nil
	}
	if level == 0 {
		*logical++
		return m.add(run{logical: *logical - 1, physical: block, count: 1})
	}
	b, err := m.node(block)
	if err != nil {
		return err
	}
	for ; len(b) > 0; b = b[4:] {
		if err := m.indirect(uint64(le.Uint32(b)), level-1, logical); err != nil {
			return err
		}
	}
	return nil
}
