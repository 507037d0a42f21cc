package redact

import "strings"

// redactShellLine redacts the secrets in a shell command line: `sh -c "mysql -pX; curl -u a:b Y"`. It understands
// quotes, separators and pipes, and no other shell syntax; the rest is left to Text.
func redactShellLine(s string) string {
	pieces := tokenizeShell(s)
	var out strings.Builder
	for from := 0; from < len(pieces); {
		to := from
		for to < len(pieces) && !pieces[to].separator {
			to++
		}
		writeRedactedCommand(&out, pieces[from:to], to < len(pieces) && pipesIntoPasswordReader(pieces[to:]))
		if to < len(pieces) {
			out.WriteString(pieces[to].text)
			to++
		}
		from = to
	}
	return out.String()
}

// shellToken is a word, the spaces between two words, or a separator of commands.
type shellToken struct {
	text             string
	blank, separator bool
}

// writeRedactedCommand writes one command with its secrets redacted. feeds reports whether its output is a password
// for the next command.
func writeRedactedCommand(out *strings.Builder, pieces []shellToken, feeds bool) {
	var words []string
	for _, p := range pieces {
		if !p.blank {
			words = append(words, unquote(p.text))
		}
	}
	hidden := redactArgs(words, false)
	prints := len(words) > 0 && (words[0] == "echo" || words[0] == "printf")
	n := 0
	for _, p := range pieces {
		switch {
		case p.blank:
			out.WriteString(p.text)
			continue
		case feeds && prints && n > 0 && !strings.HasPrefix(words[n], "-"):
			out.WriteString(Placeholder)
		case hidden[n] != words[n]:
			out.WriteString(hidden[n])
		default:
			out.WriteString(p.text)
		}
		n++
	}
}

// pipesIntoPasswordReader reports whether a pipe leads to a command that reads a password.
func pipesIntoPasswordReader(rest []shellToken) bool {
	if rest[0].text != "|" {
		return false
	}
	for _, p := range rest[1:] {
		if p.separator {
			return false
		}
		if strings.HasSuffix(p.text, "-stdin") || p.text == "-S" || p.text == "chpasswd" ||
			strings.HasSuffix(p.text, "/chpasswd") {
			return true
		}
	}
	return false
}

func unquote(s string) string {
	if len(s) > 1 && (s[0] == '\'' || s[0] == '"') && s[len(s)-1] == s[0] {
		return s[1 : len(s)-1]
	}
	// -p'secret': the quotes are inside the word.
	return strings.ReplaceAll(strings.ReplaceAll(s, `'`, ""), `"`, "")
}

// tokenizeShell splits a line into words, spaces and separators. Concatenated, they are the line.
func tokenizeShell(s string) []shellToken {
	var out []shellToken
	for i := 0; i < len(s); {
		from := i
		switch c := s[i]; {
		case c == ' ' || c == '\t':
			for i < len(s) && (s[i] == ' ' || s[i] == '\t') {
				i++
			}
			out = append(out, shellToken{text: s[from:i], blank: true})
		case strings.IndexByte(";|&()\n`", c) >= 0:
			i++
			for c != '(' && c != ')' && i < len(s) && s[i] == c {
				i++
			}
			out = append(out, shellToken{text: s[from:i], separator: true})
		default:
			i = findWordEnd(s, i)
			out = append(out, shellToken{text: s[from:i]})
		}
	}
	return out
}

func findWordEnd(s string, i int) int {
	for i < len(s) && strings.IndexByte(" \t;|&()\n`", s[i]) < 0 {
		if quote := s[i]; quote == '\'' || quote == '"' {
			end := strings.IndexByte(s[i+1:], quote)
			if end < 0 {
				return len(s)
			}
			i += end + 1
		}
		i++
	}
	return i
}
