package saga

import (
	"context"
	"errors"
)

type hinter struct{}

func (d *definition) register(ctx context.Context, on DB) error { return errors.ErrUnsupported }
