"""Who may: logins, sessions, tokens, and what guards every request."""
