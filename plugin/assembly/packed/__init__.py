"""Pretraining in packs, out of rows, tokenised documents or a prepared folder."""
