package tick

// Kicker is a hint that there is work: any number of kicks before the reader looks count as one. The zero value is not
// usable; see NewKicker.
type Kicker struct{ c chan struct{} }

// NewKicker returns a Kicker with nothing pending.
func NewKicker() *Kicker { return &Kicker{c: make(chan struct{}, 1)} }

// Kick leaves the hint and never blocks. Safe on a nil Kicker, which does nothing.
func (k *Kicker) Kick() {
	if k == nil {
		return
	}
	select {
	case k.c <- struct{}{}:
	default:
	}
}

// C delivers the pending hint; it is what Loop.Kick takes.
func (k *Kicker) C() <-chan struct{} { return k.c }
