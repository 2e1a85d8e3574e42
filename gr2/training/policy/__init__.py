"""Learning from one's own answers: rollouts, rewards, DAPO, and what gives a policy away that games them."""
