"""`epilogue bench`: the cases, the providers that compute them, the check of their results, and the report on their times."""
