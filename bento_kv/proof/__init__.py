"""The proof: is the export right, is the loop right, each with numbers and limits. Needs the `export` extra."""
