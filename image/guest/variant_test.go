package guest

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBackportsComeFromTheSameMirror(t *testing.T) {
	v := Variant{Backports: []string{"linux-image-cloud-amd64"}}
	for sources, want := range map[string]string{
		"": "deb " + mirror + " bookworm main\ndeb " + mirror + " bookworm-backports main\n",
		"deb http://s.example/ bookworm-security main\ndeb http://m.example/debian bookworm main\n": "deb http://s.example/ bookworm-security main\n" +
			"deb http://m.example/debian bookworm main\ndeb http://m.example/debian bookworm-backports main\n",
	} {
		if d := cmp.Diff(want, v.withBackports(sources)); d != "" {
			t.Errorf("%q: %s", sources, d)
		}
		if got := (Variant{}).withBackports(sources); got != sources {
			t.Errorf("without backports, %q becomes %q", sources, got)
		}
	}
}

// TestNamesFollowVariants checks that what is said of a variant goes into its files' names, and that Build's guest keeps
// the names that it had before there were variants.
func TestNamesFollowVariants(t *testing.T) {
	paths := func(v Variant) (base, image string) {
		t.Helper()
		base, image, err := (&builder{Variant: v, dir: "/cache"}).paths("deb x", []byte("agent"))
		if err != nil {
			t.Fatal(err)
		}
		return base, image
	}
	plain := Variant{Name: "guest", MiB: SizeMiB}
	base, image := paths(plain)
	for _, v := range []Variant{
		{Name: "guest", MiB: SizeMiB, Packages: []string{"gcc"}},
		{Name: "guest", MiB: SizeMiB, Backports: []string{"linux-image-cloud-amd64"}},
	} {
		if b, i := paths(v); b == base || i == image {
			t.Errorf("%+v: %s, %s", v, b, i)
		}
	}
	for _, v := range []Variant{
		{Name: "guest", MiB: SizeMiB + 1},
		{Name: "guest", MiB: SizeMiB, Files: map[string][]byte{"/a": []byte("b")}},
	} {
		if b, i := paths(v); b != base || i == image {
			t.Errorf("%+v: %s, %s", v, b, i)
		}
	}
}
