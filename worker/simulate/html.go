package simulate

import (
	"fmt"
	"io"
)

// HTML writes a report as one page that prints.
func HTML(w io.Writer, r Report) error {
	_, err := fmt.Fprintln(w, r.Summary)
	return err
}
