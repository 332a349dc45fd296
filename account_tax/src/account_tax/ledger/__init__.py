"""From the bytes of a ledger to splits of token ids."""
