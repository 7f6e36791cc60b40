package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"text/template"
	"time"

	"github.com/urfave/cli/v2"
)

func (p *program) inspectCommand() *cli.Command {
	return &cli.Command{Name: "inspect", Usage: "Show all that is known about a machine", ArgsUsage: "[NAME]",
		Description: defaultText,
		Flags:       []cli.Flag{&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "Go template of the output, with the functions json and prettyjson"}},
		Action:      p.inspect}
}

func (p *program) inspect(c *cli.Context) error {
	mc, err := p.load(c)
	if err != nil {
		return err
	}
	defer func() { _ = mc.Close() }()
	raw, err := json.Marshal(mc.Driver)
	if err != nil {
		return err
	}
	mc.Record.Driver = raw
	if c.String("format") == "" {
		return printJSON(p.stdout, mc.Record)
	}
	// Templates run on plain maps, as in docker-machine: a missing field is
	// no error.
	data, err := json.Marshal(mc.Record)
	if err != nil {
		return err
	}
	var m map[string]any
	if err := json.Unmarshal(data, &m); err != nil {
		return err
	}
	t, err := template.New("").Funcs(template.FuncMap{"json": toJSON, "prettyjson": prettyJSON}).Parse(c.String("format"))
	if err != nil {
		return fmt.Errorf("template parsing error: %w", err)
	}
	if err := t.Execute(p.stdout, m); err != nil {
		return err
	}
	fmt.Fprintln(p.stdout)
	return nil
}

func toJSON(v any) string { b, _ := json.Marshal(v); return string(b) }

func prettyJSON(v any) string { b, _ := json.MarshalIndent(v, "", "    "); return string(b) }

func printJSON(w io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "    ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, string(b))
	return err
}

// jsonRows are the rows of ls for programs.
func jsonRows(rows []row) any {
	type out struct {
		Name, Driver, State, URL, DockerVersion, Error string
		Active                                         bool
		CertEnds                                       *time.Time `json:",omitempty"`
	}
	list := make([]out, 0, len(rows))
	for _, r := range rows {
		o := out{r.Name, r.DriverName, r.State.String(), r.URL, r.DockerVersion, r.Error, r.ActiveHost, nil}
		if !r.CertEnds.IsZero() {
			o.CertEnds = &r.CertEnds
		}
		list = append(list, o)
	}
	return list
}
