// Command spin computes for a while in a guest: goroutines that hash in turn, memory that is collected, and a clock
// that the Go runtime reads by itself.
//
// # Place
//
// image/workload puts it into its guest as /soak/spin. It imports nothing of ours.
//
// The argument is how many rounds each goroutine makes; the sum that it prints depends on nothing else.
package main

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
)

const goroutines = 4

func main() {
	rounds := 1000
	if len(os.Args) > 1 {
		n, err := strconv.Atoi(os.Args[1])
		if err != nil || n < 0 {
			fmt.Fprintln(os.Stderr, "spin: how many rounds?")
			os.Exit(2)
		}
		rounds = n
	}
	sums := make(chan [sha256.Size]byte)
	for g := range goroutines {
		go func() { sums <- spin(g, rounds) }()
	}
	var all uint64
	for range goroutines {
		sum := <-sums
		all += binary.LittleEndian.Uint64(sum[:])
	}
	fmt.Printf("%x\n", all)
}

// spin hashes chains of blocks, each in memory of its own.
func spin(seed, rounds int) [sha256.Size]byte {
	sum := sha256.Sum256([]byte{byte(seed)})
	for range rounds {
		block := make([]byte, 2048)
		for at := 0; at < len(block); at += len(sum) {
			copy(block[at:], sum[:])
		}
		sum = sha256.Sum256(block)
	}
	return sum
}
