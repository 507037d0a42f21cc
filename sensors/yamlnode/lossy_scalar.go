package yamlnode

import (
	"fmt"
	"math/big"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"stanch/sensors/truncate"
)

// plainIntegerPattern matches integers that YAML 1.1, YAML 1.2 and people read alike. octalPattern matches explicit
// octal integers.
var (
	plainIntegerPattern = regexp.MustCompile(`^[-+]?(0|[1-9][0-9]*)$`)
	octalPattern        = regexp.MustCompile(`^0o[0-7]+$`)
)

// CheckLossyScalar returns a message and a hint for a scalar that the YAML library reads as another value than the
// written one: a number with a leading 0 (octal for some readers, decimal for others), with underscores, in another
// base, or with more digits than the type can represent. It returns "" for all other nodes. Quoted strings are never
// changed.
func CheckLossyScalar(n *yaml.Node) (message, hint string) {
	if n.Kind != yaml.ScalarNode ||
		n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		return "", ""
	}
	written := truncate.Text(n.Value, 40)
	switch n.Tag {
	case "!!int":
		if plainIntegerPattern.MatchString(n.Value) || octalPattern.MatchString(n.Value) {
			return "", ""
		}
		var value any
		if err := n.Decode(&value); err != nil {
			return fmt.Sprintf("`%s` is out of range", written), "put it in quotes if it is a string"
		}
		decimal := strings.TrimLeft(strings.TrimLeft(strings.ReplaceAll(n.Value, "_", ""), "+-"), "0")
		if _, err := strconv.ParseUint(decimal, 10, 64); err != nil {
			return fmt.Sprintf("`%s` would be read as %v", written, value),
				fmt.Sprintf("write %v, or put it in quotes if it is a string", value)
		}
		return fmt.Sprintf("`%s` would be read as %v", written, value),
			fmt.Sprintf("write %s, or 0o%s if it is octal, or put it in quotes if it is a string", decimal, decimal)
	case "!!float":
		value, ok := new(big.Rat).SetString(strings.ReplaceAll(n.Value, "_", ""))
		var read float64
		if !ok || n.Decode(&read) != nil {
			return "", "" // an infinity, which the reader of the value rejects
		}
		if back, ok := new(big.Rat).SetString(strconv.FormatFloat(read, 'g', -1, 64)); !ok || back.Cmp(value) != 0 {
			return fmt.Sprintf("`%s` would be read as %s", written, strconv.FormatFloat(read, 'g', -1, 64)),
				"write fewer digits, or put it in quotes if it is a string"
		}
		if strings.Contains(n.Value, "_") {
			return fmt.Sprintf("`%s` has underscores, which not every YAML parser accepts", written), "write it without them"
		}
	}
	return "", ""
}
