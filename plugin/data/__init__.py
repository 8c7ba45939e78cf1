"""Way of a document: row of a file, example, document, step, micro-batch."""
