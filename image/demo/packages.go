package main

import (
	"context"

	"github.com/duet-ft/duet/image/lab"
)

// packages sees to it that the Debian packages are there that the demo needs: it installs them as root, and else says
// how to.
func packages(ctx context.Context, out *progress) error {
	if len(lab.Missing()) > 0 {
		out.stage("Debian packages")
	}
	return lab.Install(ctx, func(line string) { out.say("%s", line) })
}
