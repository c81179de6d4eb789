"""The answer: finals, the recommendation, the contract, its deployments, its verification."""
