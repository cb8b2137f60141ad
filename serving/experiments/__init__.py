"""Who answers a request where several could: arms, canaries, shadows, drafts."""
