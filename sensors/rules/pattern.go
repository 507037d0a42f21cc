package rules

import (
	"fmt"
	"path"
	"strings"

	"stanch/sensors"
)

// patternError says why a text is not a valid pattern, or returns "". `*` matches any characters, `?` one character,
// and `[a-z]` one of a range.
func patternError(p string) string {
	if strings.TrimSpace(p) == "" {
		return "the pattern is empty"
	}
	if _, err := path.Match(p, ""); err != nil {
		return fmt.Sprintf("invalid pattern `%s`", p)
	}
	return ""
}

// matchesPattern reports whether a name matches a pattern. An empty name is an unknown one and matches nothing.
func matchesPattern(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return err == nil && ok && name != ""
}

func matchesAnyPattern(patterns []string, name string) bool {
	for _, p := range patterns {
		if matchesPattern(p, name) {
			return true
		}
	}
	return false
}

// imageReference is a parsed image reference.
type imageReference struct{ path, tag, digest string }

// parseImageReference parses `registry/name:tag@digest`. Like container runtimes, it completes a name without a
// registry with docker.io, and a name with one part with docker.io/library.
func parseImageReference(s string) imageReference {
	var i imageReference
	s, i.digest, _ = strings.Cut(s, "@")
	if colon := strings.LastIndexByte(s, ':'); colon > strings.LastIndexByte(s, '/') {
		s, i.tag = s[:colon], s[colon+1:]
	}
	first, rest, several := strings.Cut(s, "/")
	switch {
	case !several && first != "**":
		i.path = "docker.io/library/" + s
	case first == "*" || first == "**" || first == "localhost" || strings.ContainsAny(first, ".:"):
		i.path = s
		if first == "docker.io" && !strings.Contains(rest, "/") && rest != "**" {
			i.path = "docker.io/library/" + rest
		}
	default:
		i.path = "docker.io/" + s
	}
	return i
}

// imagePatternError says why a text is not a valid image pattern, or returns "".
func imagePatternError(p string) string {
	if problem := patternError(p); problem != "" {
		return problem
	}
	if i := parseImageReference(p); i.path == "**" && i.tag == "" && i.digest == "" {
		return fmt.Sprintf("`%s` matches every image", p)
	}
	return ""
}

// matchesImage reports whether a container's image matches a pattern. It compares the name part by part (a final `**`
// matches everything below), and the tag and the digest if the pattern contains them.
func matchesImage(pattern string, c *sensors.Container) bool {
	if c.Image == "" {
		return false
	}
	want, got := parseImageReference(pattern), parseImageReference(c.Image)
	if got.digest == "" {
		got.digest = c.ImageDigest
	}
	if want.digest != "" && !matchesPattern(want.digest, got.digest) || want.tag != "" &&
		!matchesPattern(want.tag, got.tag) {
		return false
	}
	if base, below := strings.CutSuffix(want.path, "**"); below {
		parts := strings.Count(base, "/")
		elements := strings.SplitAfterN(got.path, "/", parts+1)
		if len(elements) <= parts || elements[parts] == "" {
			return false
		}
		return base == "" || matchesPattern(base, strings.Join(elements[:parts], ""))
	}
	return matchesPattern(want.path, got.path)
}
