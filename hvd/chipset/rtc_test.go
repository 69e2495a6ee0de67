package chipset

import (
	"testing"
	"time"
)

func rtcRead(r *RTC, reg uint8, now uint64) uint8 {
	r.Write(0x70, reg, now)
	return r.Read(0x71, now)
}

func rtcWrite(r *RTC, reg, v uint8, now uint64) {
	r.Write(0x70, reg, now)
	r.Write(0x71, v, now)
}

// rtcTime reads the clock as Linux does.
func rtcTime(r *RTC, now uint64) [7]uint8 {
	var out [7]uint8
	for i, reg := range []uint8{rtcCentury, rtcYear, rtcMonth, rtcDay, rtcHours, rtcMinutes, rtcSeconds} {
		out[i] = rtcRead(r, reg, now)
	}
	return out
}

func TestRTC(t *testing.T) {
	r := NewRTC(time.Date(2026, 12, 31, 23, 59, 58, 500e6, time.FixedZone("", 0)))
	for now, want := range map[uint64][7]uint8{
		0:             {0x20, 0x26, 0x12, 0x31, 0x23, 0x59, 0x58},
		499_999_999:   {0x20, 0x26, 0x12, 0x31, 0x23, 0x59, 0x58},
		500_000_000:   {0x20, 0x26, 0x12, 0x31, 0x23, 0x59, 0x59},
		1_500_000_000: {0x20, 0x27, 0x01, 0x01, 0x00, 0x00, 0x00},
	} {
		if got := rtcTime(r, now); got != want {
			t.Errorf("at %d: %x, want %x", now, got, want)
		}
	}
	if got := rtcRead(r, rtcWeekday, 0); got != 5 {
		t.Errorf("day of the week %d, want Thursday", got)
	}
	if rtcRead(r, rtcA, 0)&0x80 != 0 || rtcRead(r, rtcB, 0) != 2 || rtcRead(r, rtcC, 0) != 0 || rtcRead(r, rtcD, 0) != 0x80 {
		t.Error("registers A to D")
	}
}

func TestRTCSet(t *testing.T) {
	r := NewRTC(time.Unix(0, 0))
	b := rtcRead(r, rtcB, 0)
	rtcWrite(r, rtcB, b|rtcSet, 0)
	for reg, v := range map[uint8]uint8{
		rtcCentury: 0x20, rtcYear: 0x30, rtcMonth: 0x02, rtcDay: 0x28, rtcHours: 0x23, rtcMinutes: 0x59, rtcSeconds: 0x59,
	} {
		rtcWrite(r, reg, v, 100)
	}
	if got := rtcRead(r, rtcSeconds, 5e9); got != 0x59 {
		t.Errorf("seconds %#x: the clock goes on while it is set", got)
	}
	rtcWrite(r, rtcB, b, 10e9)
	if got, want := rtcTime(r, 11e9), [7]uint8{0x20, 0x30, 0x03, 0x01, 0, 0, 0}; got != want {
		t.Errorf("time %x, want %x", got, want)
	}
	rtcWrite(r, rtcMinutes, 0x30, 11e9) // without SET
	if got := rtcRead(r, rtcMinutes, 11e9); got != 0x30 {
		t.Errorf("minutes %#x", got)
	}
}

func TestRTCModes(t *testing.T) {
	r := NewRTC(time.Date(2026, 5, 6, 15, 4, 5, 0, time.UTC))
	rtcWrite(r, rtcB, rtcBinary|rtc24, 0)
	if got := rtcRead(r, rtcHours, 0); got != 15 {
		t.Errorf("binary hours %d", got)
	}
	rtcWrite(r, rtcB, 0, 0)
	if got := rtcRead(r, rtcHours, 0); got != 0x83 {
		t.Errorf("hours %#x, want 3 p.m.", got)
	}
	rtcWrite(r, rtcHours, 0x12, 0) // midnight
	rtcWrite(r, rtcB, rtc24, 0)
	if got := rtcRead(r, rtcHours, 0); got != 0 {
		t.Errorf("hours %#x, want midnight", got)
	}
	rtcWrite(r, 0x40, 0xa5, 0)
	if got := rtcRead(r, 0x40, 0); got != 0xa5 {
		t.Errorf("CMOS memory holds %#x", got)
	}
}
