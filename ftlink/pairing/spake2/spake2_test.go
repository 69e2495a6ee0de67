package spake2

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"
)

func bin(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// vectors are those of RFC 9382, appendix B.
var vectors = []struct{ a, b, w, x, pA, y, pB, key, confA, confB string }{
	{
		"server", "client", "2ee57912099d31560b3a44b1184b9b4866e904c49d12ac5042c97dca461b1a5f",
		"43dd0fd7215bdcb482879fca3220c6a968e66d70b1356cac18bb26c84a78d729",
		"04a56fa807caaa53a4d28dbb9853b9815c61a411118a6fe516a8798434751470f9010153ac33d0d5f2047ffdb1a3e42c9b4e6be662766e1eeb4116988ede5f912c",
		"dcb60106f276b02606d8ef0a328c02e4b629f84f89786af5befb0bc75b6e66be",
		"0406557e482bd03097ad0cbaa5df82115460d951e3451962f1eaf4367a420676d09857ccbc522686c83d1852abfa8ed6e4a1155cf8f1543ceca528afb591a1e0b7",
		"0e0672dc86f8e45565d338b0540abe69",
		"58ad4aa88e0b60d5061eb6b5dd93e80d9c4f00d127c65b3b35b1b5281fee38f0",
		"d3e2e547f1ae04f2dbdbf0fc4b79f8ecff2dff314b5d32fe9fcef2fb26dc459b",
	},
	{
		"", "client", "0548d8729f730589e579b0475a582c1608138ddf7054b73b5381c7e883e2efae",
		"403abbe3b1b4b9ba17e3032849759d723939a27a27b9d921c500edde18ed654b",
		"04a897b769e681c62ac1c2357319a3d363f610839c4477720d24cbe32f5fd85f44fb92ba966578c1b712be6962498834078262caa5b441ecfa9d4a9485720e918a",
		"903023b6598908936ea7c929bd761af6039577a9c3f9581064187c3049d87065",
		"04e0f816fd1c35e22065d5556215c097e799390d16661c386e0ecc84593974a61b881a8c82327687d0501862970c64565560cb5671f696048050ca66ca5f8cc7fc",
		"642f05c473c2cd79909f9a841e2f30a7",
		"47d29e6666af1b7dd450d571233085d7a9866e4d49d2645e2df975489521232b",
		"3313c5cefc361d27fb16847a91c2a73b766ffa90a4839122a9b70a2f6bd1d6df",
	},
	{
		"server", "", "626e0cdc7b14c9db3e52a0b1b3a768c98e37852d5db30febe0497b14eae8c254",
		"07adb3db6bc623d3399726bfdbfd3d15a58ea776ab8a308b00392621291f9633",
		"04f88fb71c99bfffaea370966b7eb99cd4be0ff1a7d335caac4211c4afd855e2e15a873b298503ad8ba1d9cbb9a392d2ba309b48bfd7879aefd0f2cea6009763b0",
		"b6a4fc8dbb629d4ba51d6f91ed1532cf87adec98f25dd153a75accafafedec16",
		"040c269d6be017dccb15182ac6bfcd9e2a14de019dd587eaf4bdfd353f031101e7cca177f8eb362a6e83e7d5e729c0732e1b528879c086f39ba0f31a9661bd34db",
		"005184ff460da2ce59062c87733c299c",
		"bc9f9bbe99f26d0b2260e6456e05a86196a3307ec6663a18bf6ac825736533b2",
		"c2370e1bf813b086dff0d834e74425a06e6390f48f5411900276dcccc5a297ec",
	},
	{
		"", "", "7bf46c454b4c1b25799527d896508afd5fc62ef4ec59db1efb49113063d70cca",
		"8cef65df64bb2d0f83540c53632de911b5b24b3eab6cc74a97609fd659e95473",
		"04a65b367a3f613cf9f0654b1b28a1e3a8a40387956c8ba6063e8658563890f46ca1ef6a676598889fc28de2950ab8120b79a5ef1ea4c9f44bc98f585634b46d66",
		"d7a66f64074a84652d8d623a92e20c9675c61cb5b4f6a0063e4648a2fdc02d53",
		"04589f13218822710d98d8b2123a079041052d9941b9cf88c6617ddb2fcc0494662eea8ba6b64692dc318250030c6af045cb738bc81ba35b043c3dcb46adf6f58d",
		"fc6374762ba5cf11f4b2caa08b2cd1b9",
		"dfb4db8d48ae5a675963ea5e6c19d98d4ea028d8e898dad96ea19a80ade95dca",
		"d0f0609d1613138d354f7e95f19fb556bf52d751947241e8c7118df5ef0ae175",
	},
}

func TestVectors(t *testing.T) {
	for i, v := range vectors {
		a, b := begin(A, bin(t, v.w), bin(t, v.x)), begin(B, bin(t, v.w), bin(t, v.y))
		if err := errors.Join(
			a.Finish(b.Share(), []byte(v.a), []byte(v.b), nil),
			b.Finish(a.Share(), []byte(v.a), []byte(v.b), nil)); err != nil {
			t.Fatal(err)
		}
		for what, pair := range map[string][2][]byte{
			"pA": {a.Share(), bin(t, v.pA)}, "pB": {b.Share(), bin(t, v.pB)},
			"Ke": {a.key, bin(t, v.key)}, "B's Ke": {b.key, bin(t, v.key)},
			"cA": {a.Confirm(), bin(t, v.confA)}, "cB": {b.Confirm(), bin(t, v.confB)},
		} {
			if !bytes.Equal(pair[0], pair[1]) {
				t.Errorf("vector %d: %s is %x, want %x", i+1, what, pair[0], pair[1])
			}
		}
		if err := errors.Join(a.Verify(b.Confirm()), b.Verify(a.Confirm())); err != nil {
			t.Errorf("vector %d: %v", i+1, err)
		}
	}
}

// TestDisagreement changes one thing at a time on which the sides have to agree.
func TestDisagreement(t *testing.T) {
	secret := func(n byte) (s [SecretSize]byte) {
		for i := range s {
			s[i] = n
		}
		return s
	}
	type side struct{ password, idA, idB, aad string }
	same := side{"12345678", "a", "b", "tls"}
	for name, other := range map[string]side{
		"none": same, "password": {"12345679", "a", "b", "tls"}, "A": {"12345678", "m", "b", "tls"},
		"B": {"12345678", "a", "m", "tls"}, "aad": {"12345678", "a", "b", "m"}, "border": {"12345678", "ab", "", "tls"},
	} {
		a, b := New(A, Password(same.password, "test"), secret(1)), New(B, Password(other.password, "test"), secret(2))
		if err := errors.Join(
			a.Finish(b.Share(), []byte(same.idA), []byte(same.idB), []byte(same.aad)),
			b.Finish(a.Share(), []byte(other.idA), []byte(other.idB), []byte(other.aad))); err != nil {
			t.Fatal(err)
		}
		if ok := a.Verify(b.Confirm()) == nil; ok != (name == "none") {
			t.Errorf("they differ by %s: A agrees is %v", name, ok)
		}
		if ok := b.Verify(a.Confirm()) == nil; ok != (name == "none") {
			t.Errorf("they differ by %s: B agrees is %v", name, ok)
		}
		if a.Verify(a.Confirm()) == nil {
			t.Error("A takes its own confirmation for B's")
		}
	}
}

func TestNothingIsVerifiedBeforeFinish(t *testing.T) {
	r := New(A, Password("1", "test"), [SecretSize]byte{1})
	if r.Verify(nil) == nil || r.Verify(tag(nil, nil)) == nil {
		t.Error("a confirmation counted before there was a key")
	}
}

// FuzzFinish has shares of strangers'. Those that are taken never lead to the same key as the honest side's.
func FuzzFinish(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0})                             // infinity
	f.Add(make([]byte, ShareSize))               // not a point
	f.Add(blinds[1].Bytes())                     // N
	f.Add(blinds[1].BytesCompressed())           // another form
	f.Add(times(blinds[1], reduce(nil)).Bytes()) // infinity again
	w := Password("12345678", "test")
	f.Add(New(B, w, [SecretSize]byte{2}).Share())
	f.Fuzz(func(t *testing.T, share []byte) {
		r := New(A, w, [SecretSize]byte{1})
		if err := r.Finish(share, []byte("a"), []byte("b"), nil); err != nil {
			if !errors.Is(err, ErrShare) {
				t.Fatal(err)
			}
			return
		}
		if len(share) != ShareSize || len(r.Confirm()) != ConfirmSize {
			t.Errorf("a share of %d bytes was taken", len(share))
		}
	})
}
