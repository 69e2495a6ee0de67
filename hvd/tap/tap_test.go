package tap

import (
	"encoding/hex"
	"net"
	"testing"
)

func TestAnnouncement(t *testing.T) {
	mac := net.HardwareAddr{0x52, 0x54, 0, 1, 2, 3}
	want := "ffffffffffff" + "525400010203" + "8035" + "0001" + "0800" + "06" + "04" + "0003" +
		"525400010203" + "00000000" + "525400010203" + "00000000"
	got := hex.EncodeToString(Announcement(mac))
	if len(got) != 120 || got[:len(want)] != want {
		t.Errorf("announcement %s, want %s and padding to 60 bytes", got, want)
	}
}
