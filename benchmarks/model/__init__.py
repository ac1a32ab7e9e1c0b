"""What grows with what: operations, bytes and what ranks send."""
