"""Who is here and who leads: membership, gossip and election as pure machines; time and chance are arguments."""
