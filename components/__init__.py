"""What `pulumi up` creates, one file per thing a person sees. Components declare; every number is the plan's."""
