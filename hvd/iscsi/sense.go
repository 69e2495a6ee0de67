package iscsi

import "fmt"

// SCSI status bytes (SAM-5, section 5.3.1).
const (
	statusGood           = 0x00
	statusCheckCondition = 0x02
	statusBusy           = 0x08
	statusConflict       = 0x18
	statusTaskSetFull    = 0x28
	statusTaskAborted    = 0x40
)

func statusName(s byte) string {
	switch s {
	case statusGood:
		return "good"
	case statusCheckCondition:
		return "check condition"
	case statusBusy:
		return "target is busy"
	case statusConflict:
		return ErrReservationConflict.Error()
	case statusTaskSetFull:
		return "target's queue is full"
	case statusTaskAborted:
		return "command was aborted by another host"
	}
	return fmt.Sprintf("SCSI status 0x%02x", s)
}

// Sense keys (SPC-4, section 4.5.6).
const (
	senseNotReady       = 0x2
	senseMediumError    = 0x3
	senseHardwareError  = 0x4
	senseIllegalRequest = 0x5
	senseUnitAttention  = 0x6
	senseDataProtect    = 0x7
	senseAborted        = 0xb
	senseMiscompare     = 0xe
)

// Sense is what a target says about a failed command (SPC-4, section 4.5).
type Sense struct {
	Key       byte // sense key
	Code      byte // additional sense code (ASC)
	Qualifier byte // additional sense code qualifier (ASCQ)
	Deferred  bool // it's about an earlier command
}

// parseSense decodes the data segment of a SCSI response: two bytes of length,
// then sense data in fixed (70h, 71h) or descriptor format (72h, 73h). What is
// too short decodes to zeros.
func parseSense(data []byte) Sense {
	if len(data) < 2 {
		return Sense{}
	}
	n := int(data[0])<<8 | int(data[1])
	b := data[2:]
	if n < len(b) {
		b = b[:n]
	}
	at := func(i int) byte {
		if i < len(b) {
			return b[i]
		}
		return 0
	}
	switch at(0) & 0x7f {
	case 0x70, 0x71:
		return Sense{at(2) & 0xf, at(12), at(13), at(0)&0x7f == 0x71}
	case 0x72, 0x73:
		return Sense{at(1) & 0xf, at(2), at(3), at(0)&0x7f == 0x73}
	}
	return Sense{}
}

func (s Sense) unsupported() bool {
	// INVALID COMMAND OPERATION CODE, INVALID FIELD IN CDB
	return !s.Deferred && s.Key == senseIllegalRequest && (s.Code == 0x20 || s.Code == 0x24)
}

// becomingReady is LOGICAL UNIT IS IN PROCESS OF BECOMING READY and its
// relatives, which pass by themselves.
func (s Sense) becomingReady() bool {
	return s.Key == senseNotReady && s.Code == 0x04
}

// capacityChanged is CAPACITY DATA HAS CHANGED: the unit grew, or worse.
func (s Sense) capacityChanged() bool {
	return s.Key == senseUnitAttention && s.Code == 0x2a && s.Qualifier == 0x09
}

// String is a message for people, with the codes for those who look them up.
func (s Sense) String() string {
	text := map[byte]string{
		senseNotReady: "logical unit is not ready", senseMediumError: "medium error: the target's disk failed",
		senseHardwareError: "hardware error in the target", senseIllegalRequest: "target refuses the command as invalid",
		senseUnitAttention: "unit attention", senseDataProtect: "logical unit is write-protected",
		senseAborted: "target aborted the command", senseMiscompare: "compared data differ",
	}[s.Key]
	if s.Key == senseIllegalRequest {
		switch s.Code {
		case 0x20:
			text = "target doesn't know the command"
		case 0x21:
			text = "block address is outside of the logical unit"
		case 0x25:
			text = "target has no such logical unit (LUN)"
		}
	}
	if s.Key == senseDataProtect && s.Code == 0x27 && s.Qualifier == 0x07 {
		text = "the target's storage is full (thin provisioning)"
	}
	if s.Key == senseUnitAttention {
		switch uint16(s.Code)<<8 | uint16(s.Qualifier) {
		case 0x2900, 0x2901, 0x2902, 0x2903, 0x2904, 0x2907:
			text = "logical unit was reset"
		case 0x2a03, 0x2a04:
			text = "reservation was taken away by another host"
		case 0x2a05:
			text = "registration was removed by another host"
		case 0x2a09:
			text = "logical unit's capacity changed"
		}
	}
	if text == "" {
		text = "target failed the command"
	}
	if s.Deferred {
		text = "an earlier command failed: " + text
	}
	return fmt.Sprintf("%s (sense %x/%02x/%02x)", text, s.Key, s.Code, s.Qualifier)
}
