package host

import (
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"machine/agent/fault"
)

const tableName = "machine"

// ensureNAT writes our table anew, whatever is in it: one rule that gives
// packets of machines the computer's own address on their way out.
func ensureNAT(pool netip.Prefix) error {
	c, err := nftables.New()
	if err != nil {
		return fault.Internal.Errorf("nftables: %w", err)
	}
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4}
	// Add before delete: deleting a table that is not there fails the batch.
	c.AddTable(table)
	c.DelTable(table)
	c.AddTable(table)
	chain := c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	base := pool.Addr().As4()
	mask := net.CIDRMask(pool.Bits(), 32)
	name := make([]byte, 16)
	copy(name, bridgeName)
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: base[:]},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: name},
		&expr.Masq{},
	}})
	if err := c.Flush(); err != nil {
		return fault.Internal.Errorf("nftables: make table %s: %w", tableName, err)
	}
	return nil
}

// removeNAT deletes our table. None is no error.
func removeNAT() error {
	c, err := nftables.New()
	if err != nil {
		return fault.Internal.Errorf("nftables: %w", err)
	}
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4}
	c.AddTable(table)
	c.DelTable(table)
	if err := c.Flush(); err != nil {
		return fault.Internal.Errorf("nftables: delete table %s: %w", tableName, err)
	}
	return nil
}
