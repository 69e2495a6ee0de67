package locate

// IsBranch says whether code, which starts at an instruction's first byte, is
// what the counters of conditional branches count: Jcc, LOOPcc and JCXZ, taken
// or not (Intel SDM volume 2, appendix A). long is for 64-bit code.
func IsBranch(code []byte, long bool) bool {
	op, _ := opcode(code, long)
	switch {
	case len(op) == 0:
		return false
	case op[0] >= 0x70 && op[0] <= 0x7f, op[0] >= 0xe0 && op[0] <= 0xe3:
		return true
	}
	return len(op) > 1 && op[0] == 0x0f && op[1] >= 0x80 && op[1] <= 0x8f
}

// IsRepeated says whether code is a string instruction with a REP prefix.
func IsRepeated(code []byte, long bool) bool {
	op, rep := opcode(code, long)
	if !rep || len(op) == 0 {
		return false
	}
	switch op[0] {
	case 0x6c, 0x6d, 0x6e, 0x6f, // INS, OUTS
		0xa4, 0xa5, 0xa6, 0xa7, // MOVS, CMPS
		0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf: // STOS, LODS, SCAS
		return true
	}
	return false
}

// opcode skips the prefixes; 40h to 4fh are one in 64-bit code alone.
func opcode(code []byte, long bool) (op []byte, rep bool) {
	for i, b := range code {
		switch b {
		case 0xf2, 0xf3:
			rep = true
		case 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0:
		default:
			if long && b&0xf0 == 0x40 {
				i++
			}
			return code[i:], rep
		}
	}
	return nil, rep
}
