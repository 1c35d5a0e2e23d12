package twophasetest

import "context"

// Check does the check of that name.
func Check(ctx context.Context, name string, t Target) error {
	for _, c := range checks {
		if c.name == name {
			return c.check(ctx, t)
		}
	}
	panic("no check " + name)
}
