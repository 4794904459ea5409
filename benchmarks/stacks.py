"""x"""


def measure(): ...
