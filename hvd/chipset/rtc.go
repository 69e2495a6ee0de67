package chipset

import (
	"errors"
	"time"
)

const (
	rtcSeconds, rtcMinutes, rtcHours  = 0, 2, 4
	rtcWeekday, rtcDay, rtcMonth      = 6, 7, 8
	rtcYear, rtcCentury               = 9, 0x32
	rtcA, rtcB, rtcC, rtcD            = 0xa, 0xb, 0xc, 0xd
	rtcBinary, rtc24, rtcSet          = 4, 2, 0x80
	rtcValid                          = 0x80
	rtcDivider                        = 0x26 // 32.768 kHz, never an update in progress
	rtcSize                           = 128
	rtcMinYear, rtcMaxYear, rtcPMFlag = 1970, 2200, 0x80
)

// RTC is the real-time clock and its CMOS RAM (Motorola MC146818A data sheet).
// Its time is Base plus guest time; a guest that sets the clock moves Base. It
// never interrupts: alarms and periodic interrupts can be set, and don't come.
type RTC struct {
	Index uint8
	Base  int64  // wall clock at guest time 0, ns since 1970 UTC
	RAM   []byte // 128 bytes; the time's registers hold what was set while SET is on
}

// NewRTC returns a clock that shows wall at guest time 0, in BCD and 24 hours.
func NewRTC(wall time.Time) *RTC {
	r := &RTC{Base: wall.UnixNano(), RAM: make([]byte, rtcSize)}
	r.RAM[rtcA], r.RAM[rtcB], r.RAM[rtcD] = rtcDivider, rtc24, rtcValid
	return r
}

// Validate checks a restored state.
func (r *RTC) Validate() error {
	if len(r.RAM) != rtcSize || r.Index >= rtcSize {
		return errors.New("RTC: index or memory out of range")
	}
	return nil
}

// Write stores to port 70h (index) or 71h (data).
func (r *RTC) Write(port uint16, v uint8, now uint64) {
	if port == 0x70 { // bit 7 masks NMI, of which there are none
		r.Index = v & (rtcSize - 1)
		return
	}
	switch i := r.Index; {
	case i == rtcA:
		r.RAM[i] = v & 0x7f
	case i == rtcC, i == rtcD:
	case i == rtcB:
		r.writeB(v, now)
	case !isTime(i):
		r.RAM[i] = v
	case r.RAM[rtcB]&rtcSet != 0:
		r.RAM[i] = v
	default:
		r.show(now)
		r.RAM[i] = v
		r.adopt(now)
	}
}

// Read returns port 71h; port 70h can't be read.
func (r *RTC) Read(port uint16, now uint64) uint8 {
	if port != 0x71 {
		return 0xff
	}
	if isTime(r.Index) && r.RAM[rtcB]&rtcSet == 0 {
		r.show(now)
	}
	return r.RAM[r.Index]
}

func isTime(i uint8) bool {
	switch i {
	case rtcSeconds, rtcMinutes, rtcHours, rtcWeekday, rtcDay, rtcMonth, rtcYear, rtcCentury:
		return true
	}
	return false
}

// writeB sets the modes. The time stands still while SET is on, and goes on
// from what the registers hold then.
func (r *RTC) writeB(v uint8, now uint64) {
	was := r.RAM[rtcB]
	if was&rtcSet == 0 && v&rtcSet != 0 {
		r.show(now)
	}
	r.RAM[rtcB] = v
	if was&rtcSet != 0 && v&rtcSet == 0 {
		r.adopt(now)
	}
}

// show puts the current time into the registers.
func (r *RTC) show(now uint64) {
	t := time.Unix(0, r.Base+int64(now)).UTC()
	hour := t.Hour()
	pm := uint8(0)
	if r.RAM[rtcB]&rtc24 == 0 {
		if hour >= 12 {
			pm = rtcPMFlag
		}
		hour = (hour+11)%12 + 1
	}
	r.RAM[rtcSeconds] = r.encode(t.Second())
	r.RAM[rtcMinutes] = r.encode(t.Minute())
	r.RAM[rtcHours] = r.encode(hour) | pm
	r.RAM[rtcWeekday] = r.encode(int(t.Weekday()) + 1)
	r.RAM[rtcDay] = r.encode(t.Day())
	r.RAM[rtcMonth] = r.encode(int(t.Month()))
	r.RAM[rtcYear] = r.encode(t.Year() % 100)
	r.RAM[rtcCentury] = r.encode(t.Year() / 100)
}

// adopt makes the registers the current time. Fields out of range carry over,
// a year out of range counts as the nearest.
func (r *RTC) adopt(now uint64) {
	hour := r.decode(r.RAM[rtcHours] &^ rtcPMFlag)
	if r.RAM[rtcB]&rtc24 == 0 {
		hour %= 12
		if r.RAM[rtcHours]&rtcPMFlag != 0 {
			hour += 12
		}
	}
	year := 100*r.decode(r.RAM[rtcCentury]) + r.decode(r.RAM[rtcYear])
	year = min(max(year, rtcMinYear), rtcMaxYear)
	t := time.Date(year, time.Month(r.decode(r.RAM[rtcMonth])), r.decode(r.RAM[rtcDay]),
		hour, r.decode(r.RAM[rtcMinutes]), r.decode(r.RAM[rtcSeconds]), 0, time.UTC)
	r.Base = t.UnixNano() - int64(now)
}

func (r *RTC) encode(v int) uint8 {
	if r.RAM[rtcB]&rtcBinary != 0 {
		return uint8(v)
	}
	return uint8(v/10<<4 | v%10)
}

func (r *RTC) decode(v uint8) int {
	if r.RAM[rtcB]&rtcBinary != 0 {
		return int(v)
	}
	return int(v>>4)*10 + int(v&15)
}
