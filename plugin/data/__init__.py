"""From a dataset's name to the documents of each step: sources, layouts, chat, documents, steps,
batches.
"""
