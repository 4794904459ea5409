"""What a report consists of: figures with their uncertainty, tables, charts, and four formats."""
