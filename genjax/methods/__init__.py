"""One file a family of generative model: pure losses and samplers, gathered in a `Method`."""
