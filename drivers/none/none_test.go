package none_test

import (
	"testing"

	"machine/drivers"
	"machine/drivers/driverstest"
	"machine/drivers/none"
)

func TestSuite(t *testing.T) {
	driverstest.Run(t, driverstest.Case{Kind: none.Kind(), Options: drivers.Options{"url": "tcp://127.0.0.1:2376"}})
}

func TestURLNeeded(t *testing.T) {
	for _, url := range []string{"", "://"} {
		if none.Kind().New(drivers.Env{}).Configure(drivers.Options{"url": url}) == nil {
			t.Errorf("url %q was taken", url)
		}
	}
}
