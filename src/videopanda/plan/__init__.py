"""What a request costs before it is made: tokens, FLOPs, memory, time; and the error for one that does not fit."""
