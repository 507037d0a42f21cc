package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"stanch/sensors/diagnostic"
	"stanch/sensors/yamlnode"
)

// Load reads and parses a file. A missing file is an error.
func Load(file string) (*Config, diagnostic.Diagnostics, error) {
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("read the config: no such file %s; omit --config to run with the defaults", file)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the config: %w", err)
	}
	c, problems := Parse(file, raw)
	return c, problems, nil
}

var yamlErrorLinePattern = regexp.MustCompile(`line (\d+): (.*)`)

var wrongTypePattern = regexp.MustCompile("^cannot unmarshal !!(\\S+) (`.*`) into ")

var unknownFieldPattern = regexp.MustCompile(`field (\S+) not found in type config\.(\S+)`)

// Parse parses the text of a file. The configuration is usable only if the diagnostics contain no error.
func Parse(file string, raw []byte) (*Config, diagnostic.Diagnostics) {
	p := &configParser{Reader: yamlnode.Reader{File: file}}
	var doc yaml.Node
	if yaml.Unmarshal(raw, &doc) == nil && len(doc.Content) == 1 { // decode reports a syntax error
		p.root = doc.Content[0]
		p.checkLossyNumbers(p.root)
	}
	c := &Config{}
	p.decode(raw, c)
	p.checkAll(c)
	if p.Problems.HasErrors() {
		return nil, p.Problems.Sorted()
	}
	return c.withDefaults(), p.Problems.Sorted()
}

// decode decodes the file strictly, and reports every error of the decoder.
func (p *configParser) decode(raw []byte, c *Config) {
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	decoder.KnownFields(true)
	err := decoder.Decode(c)
	if err == nil || errors.Is(err, io.EOF) {
		return
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		m := yamlErrorLinePattern.FindStringSubmatch(line)
		if m == nil {
			if !strings.Contains(line, "unmarshal errors") {
				p.Errorf(yamlnode.Position{}, "yaml", "", "%s", strings.TrimPrefix(line, "yaml: "))
			}
			continue
		}
		n, _ := strconv.Atoi(m[1])
		if f := unknownFieldPattern.FindStringSubmatch(m[2]); f != nil {
			p.Errorf(p.atLine(n, f[1], ""), "unknown-key", diagnostic.DidYouMean(f[1], yamlKeysOfType(f[2])),
				"unknown key `%s`", f[1])
			continue
		}
		message, hint := m[2], ""
		if t := wrongTypePattern.FindStringSubmatch(m[2]); t != nil {
			message = fmt.Sprintf("invalid value %s: a %s is not allowed here", t[2], t[1])
		}
		if strings.HasSuffix(m[2], "into config.LibrarySelection") {
			hint = "write `library: {enabled: false}`, `library: {except: [NAME]}` or `library: {only: [NAME]}`"
		}
		p.Errorf(p.atLine(n, "", m[2]), "yaml", hint, "%s", message)
	}
}

// checkLossyNumbers reports numbers whose parsed value differs from the text.
func (p *configParser) checkLossyNumbers(n *yaml.Node) {
	if message, hint := yamlnode.CheckLossyScalar(n); message != "" {
		p.Errorf(yamlnode.PositionOf(n), "value", hint, "%s", message)
	}
	for _, child := range n.Content {
		p.checkLossyNumbers(child)
	}
}

func (p *configParser) checkAll(c *Config) {
	p.checkAWS(c)
	p.checkNotifications(c)
	p.checkSources(c.Sources)
	p.checkExports(c.Exports)
	p.checkNodes(c.NodeLimits)
	p.checkNetworks(c.Networks)
	if l := c.Library; len(l.Only) > 0 && (len(l.Except) > 0 || l.Enabled != nil && !*l.Enabled) {
		p.Errorf(p.at("library", "only"), "library", "keep one of them",
			"library: `only` cannot be combined with `except` or `enabled: false`")
	}
	p.checkPhase(p.at("phase"), "the cluster", c.Phase)
	known := p.checkPeople(c)
	p.checkSlack(c.Slack)
	p.checkScopes(c.Scopes, known)
}

// yamlKeysOfType returns the YAML keys of one of the configuration's types, for hints.
func yamlKeysOfType(typeName string) []string {
	var find func(t reflect.Type) []string
	find = func(t reflect.Type) []string {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || t.PkgPath() != reflect.TypeFor[Config]().PkgPath() {
			return nil
		}
		var keys []string
		for f := range structFields(t) {
			if t.Name() == typeName {
				keys = append(keys, f.Tag.Get("yaml"))
			} else if keys = find(f.Type); keys != nil {
				break
			}
		}
		return keys
	}
	return find(reflect.TypeFor[Config]())
}

func structFields(t reflect.Type) iter.Seq[reflect.StructField] {
	return func(yield func(reflect.StructField) bool) {
		for field := range t.Fields() {
			if !yield(field) {
				return
			}
		}
	}
}
