package sensors_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
)

// The name depends on what the program is, not on the link or version in its file name.
func TestProgramName(t *testing.T) {
	for _, c := range []struct {
		exe  string
		args []string
		want string
	}{
		{"/usr/bin/python3.11", nil, "python"},
		{"/usr/bin/python3", nil, "python3"},
		{"/usr/sbin/php-fpm8.2", nil, "php-fpm"},
		{"/usr/bin/gcc-12", nil, "gcc"},
		{"/usr/bin/perl5.36.0 (deleted)", nil, "perl"},
		{"/sbin/mkfs.ext4", nil, "mkfs.ext4"},
		{"/usr/bin/sha256sum", nil, "sha256sum"},
		{"/lib64/ld-linux-x86-64.so.2", nil, "ld-linux-x86-64.so.2"},
		{"/usr/bin/nc.openbsd", nil, "nc.openbsd"},
		{"/srv/7", nil, "7"},
		{"/srv/1.2", nil, "1.2"},
		{"/bin/busybox", []string{"-ash"}, "ash"},
		{"/bin/busybox", []string{"busybox", "sh", "-i"}, "sh"},
		{"/bin/busybox", []string{"/bin/busyboxx", "sh"}, "sh"},
		{"/bin/busybox", []string{"busybox", "busybox", "sh"}, "sh"},
		{"/bin/busybox", []string{"busybox"}, "busybox"},
		{"/bin/busybox", nil, "busybox"},
	} {
		p := sensors.Process{Exe: c.exe, Args: c.args}
		require.Equal(t, c.want, p.ExeName(), "%s %q", c.exe, c.args)
	}
}
