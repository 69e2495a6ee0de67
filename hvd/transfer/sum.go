package transfer

import "github.com/zeebo/xxh3"

// Sum is a page's name by its content: xxh3's 128 bits with a salt that is
// chosen anew for each state transfer, so that a guest can't prepare two pages
// of one name.
type Sum [16]byte

// SumOf names a page's content.
func SumOf(page []byte, salt uint64) Sum {
	return xxh3.Hash128Seed(page, salt).Bytes()
}
