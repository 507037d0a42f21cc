package config

import (
	"slices"
	"strings"
)

// The formats of exported detections.
const (
	ExportFormatOCSF   = "ocsf"
	ExportFormatFalco  = "falco"
	ExportFormatStanch = "stanch"
)

// Export is a receiver of every detection.
type Export struct {
	Name      string `yaml:"name" json:"name" jsonschema:"required,description=each name once"`
	Format    string `yaml:"format" json:"format" jsonschema:"required,enum=ocsf,enum=falco,enum=stanch,description=OCSF Detection Findings; Falco's JSON output; Stanch's own format"`
	URL       string `yaml:"url" json:"url,omitempty" jsonschema:"description=https; http only to this machine. One object per request"`
	File      string `yaml:"file" json:"file,omitempty" jsonschema:"description=instead of url: one object per line"`
	TokenFile string `yaml:"token_file" json:"token_file,omitempty" jsonschema:"description=sent as Authorization: Bearer"`
}

func (p *configParser) checkExports(all []Export) {
	formats := []string{ExportFormatOCSF, ExportFormatFalco, ExportFormatStanch}
	seen := map[string]bool{}
	for i, e := range all {
		where := "export " + e.Name
		if e.Name == "" || seen[e.Name] {
			p.Errorf(p.at("exports", i, "name"), "name", "", "the export name `%s` is empty or used twice", e.Name)
		}
		seen[e.Name] = true
		if !slices.Contains(formats, e.Format) {
			p.Errorf(p.at("exports", i, "format"), "format", "use one of "+strings.Join(formats, ", "),
				"%s: unknown format `%s`", where, e.Format)
		}
		switch {
		case (e.URL == "") == (e.File == ""):
			p.Errorf(p.at("exports", i), "required", "specify exactly one of them",
				"%s: exactly one of `url` and `file` is required", where)
		case e.URL != "":
			p.checkURL(p.at("exports", i, "url"), where, e.URL)
		case e.TokenFile != "":
			p.Errorf(p.at("exports", i, "token_file"), "value", "remove it", "%s: `token_file` is not allowed with `file`",
				where)
		}
	}
}
