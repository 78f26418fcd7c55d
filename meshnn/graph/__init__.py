"""The compiler: TFLite bytes to one frozen IR and back, cuts, splits, costs. Pure."""
