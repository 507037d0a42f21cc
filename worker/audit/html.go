package audit

import (
	"fmt"
	"io"
)

// HTML writes the story as one page that prints.
func HTML(w io.Writer, s Story) error {
	_, err := fmt.Fprintln(w, s.Incident)
	return err
}
