"""What a run costs on chips that are not there: FLOPs, bytes, collectives, and a roofline."""
